"""Write both sidebars and the chapters of the first page from one list, `nbs/chapters.yml`.

usage: python tools/make_chapters.py [--check]
The list holds the sections, the order and each page's title in a few words; what a notebook claims
is read from the line `> ...` of its first cell. `--check` writes nothing and fails where a file
differs. Run it after a notebook is added, moved or renamed, or its claim is changed.
"""
import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
HEAD = '''# Written by tools/make_chapters.py: links at the top, order and pictures of the site.
# {other} differs only in the folder before a name.
website:
  favicon: {folder}favicon.svg
  open-graph:
    image: {folder}social.png
  twitter-card:
    image: {folder}social.png
  navbar:
    left:
{links}  sidebar:
    contents:
'''
LINKS = { # at the top of each page
    'api/leakage.ladder': 'The finding', '06_leakage_audit': 'Audit your data',
    '07_predict': 'Predict a case', 'quickstart': 'Run it', 'api/cli': 'Commands'}
CHAPTERS = '## Chapters\n'


def read_list(
    items:list, # of mappings with one key: a page and its title, or a section and its items
    sections:tuple=(), # that these items stand in
) -> list: # (sections, page, title), in the order of reading
    "Flatten the list of chapters; raise ValueError for an item of another form."
    rows = []
    for item in items:
        if not isinstance(item, dict) or len(item) != 1:
            raise ValueError(f'nbs/chapters.yml: {item!r} is not one `page: title` or '
                             '`section: list`')
        (name, content), = item.items()
        if isinstance(content, list): rows += read_list(content, (*sections, name))
        elif isinstance(content, str): rows.append((sections, name, content))
        else: raise ValueError(f'nbs/chapters.yml: {name} needs a title, or a list of pages')
    return rows


def read_chapters(
    nbs:Path, # folder with `chapters.yml` and the notebooks, in folders too
) -> list: # (sections, page, title)
    "Read the list; raise ValueError if it does not hold each notebook exactly once."
    rows = read_list(yaml.safe_load((nbs/'chapters.yml').read_text(encoding='utf-8')))
    listed = Counter(page for _, page, _ in rows)
    there = {p.relative_to(nbs).with_suffix('').as_posix() for p in nbs.rglob('*.ipynb')}
    there = {p for p in there if not re.search(r'(^|/)[._]', p)}
    faults = [f'lists {p} twice' for p, n in listed.items() if n > 1]
    faults += [f'lists {p}, which is no notebook' for p in sorted(set(listed) - there)]
    faults += [f'does not list {p}' for p in sorted(there - set(listed))]
    if faults: raise ValueError(f'nbs/chapters.yml {"; ".join(faults)}')
    return rows


def name_of(
    page:str, # such as 06_leakage_audit or api/core.settings
) -> str: # such as `06 leakage audit` or `core.settings`; the first page is named as the package
    "Name a page as its number and title do."
    name = page.rpartition('/')[2]
    if page.startswith('api/'): return name # as the module
    return 'cesm_nb' if name == 'index' else name.replace('_', ' ')


def read_claim(
    notebook:Path,
) -> str: # one sentence
    "Read a notebook's claim; raise ValueError if its first cell is not `# name` and `> claim`."
    first = ''.join(json.loads(notebook.read_text(encoding='utf-8'))['cells'][0]['source'])
    found = re.fullmatch(r'# .+\n\n> ([^|\n]+)\n?', first)
    if not found:
        raise ValueError(f'{notebook.name}: the first cell is not `# name`, a blank line and '
                         '`> claim` without a |')
    return found[1].strip()


def make_sidebar(
    rows:list, # of `read_chapters`
    folder:str='', # before the name of a notebook, such as nbs/
) -> str: # YAML
    "Make a sidebar."
    other = 'nbs/sidebar.yml (nbdev)' if folder else 'sidebar.yml (`quarto render` at the root)'
    links = ''.join(f'      - href: {folder}{page}.ipynb\n        text: {text}\n'
                    for page, text in LINKS.items())
    lines, before = [HEAD.format(folder=folder, other=other, links=links)], ()
    for sections, page, title in rows:
        for depth, name in enumerate(sections):
            if before[:depth + 1] == sections[:depth + 1]: continue # this section is open
            at = ' '*(6 + 4*depth)
            lines.append(f'{at}- section: {name}\n{at}  contents:\n')
        before, at = sections, ' '*(6 + 4*len(sections))
        text = json.dumps(f'{name_of(page)}: {title}', ensure_ascii=False)
        lines.append(f'{at}- href: {folder}{page}.ipynb\n{at}  text: {text}\n')
    return ''.join(lines)


def make_tables(
    rows:list, # of `read_chapters`
    nbs:Path, # folder with the notebooks
) -> str: # Markdown
    "Make the chapters of the first page: a table per section, with the claim of each notebook."
    lines, before = [CHAPTERS], ()
    for sections, page, _ in rows:
        if not sections: continue # the first page itself
        if sections != before:
            lines.append(f'\n### {": ".join(sections)}\n\n'
                         '| chapter | in one sentence |\n| --- | --- |\n')
        before = sections
        lines.append(f'| [{name_of(page)}]({page}.ipynb) | {read_claim(nbs/f"{page}.ipynb")} |\n')
    return ''.join(lines).rstrip('\n')


def fill_index(
    text:str, # the first page, as a file
    tables:str, # from `make_tables`
) -> str: # with them in the one cell that begins with `## Chapters`
    "Put the tables into the first page."
    nb = json.loads(text)
    cells = [c for c in nb['cells'] if ''.join(c['source']).startswith(CHAPTERS)]
    if len(cells) != 1:
        raise ValueError(f'nbs/index.ipynb has {len(cells)} cells that begin with '
                         f'{CHAPTERS.strip()!r}, expected one')
    cells[0]['source'] = tables.splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + '\n'


def make_files(
    root:Path, # of the checkout
) -> dict: # path -> text as it should be
    "Make all files that are written from the list."
    nbs, index = root/'nbs', root/'nbs'/'index.ipynb'
    rows = read_chapters(nbs)
    return {root/'sidebar.yml': make_sidebar(rows, 'nbs/'), nbs/'sidebar.yml': make_sidebar(rows),
            index: fill_index(index.read_text(encoding='utf-8'), make_tables(rows, nbs))}


def main():
    "Write, or compare."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true', help='write nothing; fail where a file differs')
    check = ap.parse_args().check
    try: files = make_files(ROOT)
    except (ValueError, OSError) as e: sys.exit(f'make_chapters: {e}')
    read = lambda p: p.read_text(encoding='utf-8') if p.exists() else ''
    stale = [p for p, text in files.items() if read(p) != text]
    if check and stale:
        sys.exit(f'make_chapters: {", ".join(str(p.relative_to(ROOT)) for p in stale)}: not as '
                 'nbs/chapters.yml has it, run python tools/make_chapters.py')
    for p in stale: p.write_text(files[p], encoding='utf-8')


if __name__ == '__main__': main()
