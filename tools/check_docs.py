"""Check what readers of the documentation meet, where Quarto builds a broken page without an error.

usage: python tools/check_docs.py [FOLDER]
Links and their anchors, cross-references, citations, labels, alt texts, stored outputs and Colab badges of the notebooks,
and the links of the Markdown files beside them. One line per fault, then exit code 1.
"""
import re
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import mistune
import nbformat

COLAB = 'https://colab.research.google.com/'
BADGE = COLAB + 'assets/colab-badge.svg'
id_re = re.compile(r'\{(?:[^{}]*\s)?#([\w-]+)[^{}]*\}') # `{#id .class}`
cite_re = re.compile(r'(?<![\w.@])@([A-Za-z0-9_](?:[\w:.#$%&+?<>~/-]*[A-Za-z0-9_])?)')
option_re = re.compile(r'^#\|[ \t]*([\w-]+):[ \t]+(.*)$', re.M)
bib_re = re.compile(r'^\s*@(?!comment|string|preamble)\w+\s*\{\s*([^,\s]+)\s*,', re.M | re.I)
bar_re = re.compile(r'\d%\||[\d?](?:it/s|s/it)\b')
path_re = re.compile(r'(?<![\w.~-])/(?:tmp|work|home|root|Users)/[^\s<>"\']+')
to_tokens = mistune.create_markdown(renderer='ast', plugins=['table', 'math', 'footnotes'])


class Cell(NamedTuple):
    "A cell of a notebook, or a whole Markdown file."
    path: Path # of the page
    place: str # `nbs/x.ipynb cell 7`
    options: dict # Quarto's, of a code cell
    outputs: list # stored, of a code cell
    tokens: list # of the Markdown in the source, or in the outputs of a code cell
    urls: list # of links and images
    labels: list # set as an option or as `{#id}`
    references: list # keys after `@` in running text: cross-references and citations


class Site(NamedTuple):
    "What readers meet."
    root: Path
    ini: dict # `settings.ini`
    cells: list # of all pages
    pages: dict # path -> cells
    cited: set # keys in the bibliography


def walk(tokens:list):
    "All tokens, depth first."
    for token in tokens:
        yield token
        yield from walk(token.get('children', []))


def plain(token:dict, code:bool=False) -> str:
    "The words of a token, with inline code or without."
    if 'children' in token: return ''.join(plain(t, code) for t in token['children'])
    return token['raw'] if token['type'] == 'text' or (code
                                                       and token['type'] == 'codespan') else ' '


def read_cell(path:Path, place:str, cell:dict) -> Cell:
    "Read a cell and the Markdown that it shows; an escaped `@` refers to nothing."
    code, outputs = cell['cell_type'] == 'code', cell.get('outputs', [])
    markdown, html = ('\n\n'.join(o.get('data', {}).get(f'text/{kind}', '') for o in outputs)
                      for kind in ('markdown', 'html'))
    options = {k: v.strip(' \'"') for k, v in option_re.findall(cell['source'])} if code else {}
    tokens = to_tokens((markdown if code else cell['source']).replace(r'\@', ''))
    found = list(walk(tokens))
    text = '\n\n'.join(
        plain(t)
        for t in found if t['type'] in ('paragraph', 'heading', 'block_text', 'table_cell'))
    html = ' '.join(
        [html] + [t['raw'] for t in found if t['type'] in ('inline_html', 'block_html')])
    urls = [t['attrs']['url'] for t in found if t['type'] in ('link', 'image')] + re.findall(
        r'\b(?:href|src)="([^"]+)"', html)
    labels = [v for k, v in options.items() if k == 'label'] + id_re.findall(text)
    return Cell(path, place, options, outputs, tokens, urls, labels, cite_re.findall(text))


def read_site(root:Path) -> Site:
    "Read all notebooks, the Markdown files at the root and the README.md of its folders."
    ini, cells, pages = ConfigParser(delimiters=['=']), [], {}
    ini.read(root/'settings.ini', encoding='utf-8')
    nbs = root/ini['DEFAULT']['nbs_path']
    for path in sorted(nbs.rglob('[!._]*.ipynb')):
        place = f'{path.relative_to(root)} cell'
        cells += [
            read_cell(path, f'{place} {i}', c)
            for i, c in enumerate(nbformat.read(path, 4).cells, 1)
        ]
    for path in sorted([*root.glob('*.md'), *root.glob('*/README.md')]):
        cells.append(
            read_cell(path, str(path.relative_to(root)),
                      dict(cell_type='markdown', source=path.read_text(encoding='utf-8'))))
    for c in cells: pages.setdefault(c.path, []).append(c)
    return Site(root, dict(ini['DEFAULT']), cells, pages,
                set(bib_re.findall((nbs/'references.bib').read_text(encoding='utf-8'))))


def is_notebook(path:Path) -> bool:
    "Is a page a notebook?"
    return path.suffix == '.ipynb'


def find_anchors(cells:list) -> set:
    "What `#fragment` may name on a page: Pandoc makes anchors in notebooks, without one for the title, GitHub in Markdown files."
    found, count, notebook = {label
                              for c in cells
                              for label in c.labels}, Counter(), is_notebook(cells[0].path)
    for token in walk([t for c in cells for t in c.tokens]):
        if token['type'] in ('inline_html', 'block_html'):
            found |= set(re.findall(r'\bid="([^"]+)"', token['raw']))
        if token['type'] != 'heading' or id_re.search(
                plain(token)) or (notebook and token['attrs']['level'] == 1):
            continue
        words = re.sub(r'[^\w\s.-]', '',
                       re.sub(r'\{[^{}]*\}\s*$', '', plain(token, code=True)).lower())
        pandoc = re.sub(r'^[\W\d_]+', '', '-'.join(words.split())) or 'section'
        name = pandoc if notebook else words.replace('.', '').strip().replace(' ', '-')
        found.add(f'{name}-{count[name]}' if count[name] else name)
        count[name] += 1
    return found


def follow(site:Site, path:Path, url:str) -> str: # what is wrong with the link, '' where nothing is
    "Follow a link from a page as far as the site and the repository go."
    ini, nbs = site.ini, site.root/site.ini['nbs_path']
    blob, home = f"{ini['user']}/{ini['repo']}/blob/{ini['branch']}/", ini['doc_host'] + ini[
        'doc_baseurl']
    start = next((s for s in (f'https://github.com/{blob}', f'{COLAB}github/{blob}', home)
                  if url.startswith(s)), '')
    rest = urlsplit(url.removeprefix(start))
    name, fragment = unquote(rest.path).lstrip('/' if start else ''), unquote(rest.fragment)
    if not start and (rest.scheme or rest.netloc): return ''
    if start == home: # nbdev names a page after its notebook, without the number
        target = next(
            (p for p in site.pages
             if re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem) + '.html' == (name or 'index.html')),
            nbs/name)
    else: target = ((site.root if start else path.parent)/name if name else path).resolve()
    if not target.exists(): return f'{name} does not exist'
    there = bool(start) or target.is_relative_to(nbs if is_notebook(path) else site.root)
    if not there: return f'{name} is not on the site: give its address on GitHub'
    known = not fragment or target not in site.pages or fragment in find_anchors(site.pages[target])
    return '' if known else f'{target.name} has no anchor {fragment}'


def check_links(site:Site):
    "Does each link inside the site or the repository lead somewhere?"
    for c, url in [(c, u) for c in site.cells for u in c.urls]:
        fault = follow(site, c.path, url)
        if fault: yield f'{c.place}: link to {url}: {fault}'


def check_references(site:Site):
    "Does each `@key` name a citation or what its own page shows under a label, and is each label set once there?"
    for cells in [cells for path, cells in site.pages.items() if is_notebook(path)]:
        shown, seen = {label
                       for c in cells if c.outputs or not c.options for label in c.labels}, set()
        for c, key in [(c, k) for c in cells for k in c.references]:
            if not {key, key[0].lower() + key[1:]} & (shown | site.cited):
                yield f'{c.place}: @{key} is neither the label of something shown on this page nor in references.bib'
        for c, label in [(c, label) for c in cells for label in c.labels]:
            if label in seen: yield f'{c.place}: label {label} is set before on this page'
            seen.add(label)


def is_figure(cell:Cell) -> bool:
    "Does a labelled cell store an image?"
    return cell.options.get('label', '').startswith('fig-') and any(
        'image/png' in o.get('data', {}) for o in cell.outputs)


def check_figures(site:Site):
    "Can those who do not see a figure read what it shows?"
    for c in filter(is_figure, site.cells):
        if c.options.get('fig-alt', '') in ('', c.options.get('fig-cap')):
            yield f"{c.place}: {c.options['label']} has no fig-alt of its own: say what is to be seen"


def check_outputs(site:Site):
    "Do stored outputs show results alone?"
    for c, output in [(c, o) for c in site.cells for o in c.outputs]:
        text = ' '.join(
            [output.get('text', '')
             ] + [str(v) for k, v in output.get('data', {}).items() if k.startswith('text/')])
        if output['output_type'] == 'error' or output.get('name') == 'stderr':
            yield f'{c.place}: stores stderr'
        if bar_re.search(text): yield f'{c.place}: stores a progress bar'
        for path in path_re.findall(text): yield f'{c.place}: stores {path}, a path of one machine'


def check_badges(site:Site):
    "Does each notebook open in Colab?"
    ini = site.ini
    for path, cells in [(p, cells) for p, cells in site.pages.items() if is_notebook(p)]:
        want = f"{COLAB}github/{ini['user']}/{ini['repo']}/blob/{ini['branch']}/{path.relative_to(site.root)}"
        links = [(c, t) for c in cells for t in walk(c.tokens) if t['type'] == 'link']
        found = [(c, t['attrs']['url']) for c, t in links if any(
            i.get('attrs') == {'url': BADGE} for i in t['children'])]
        if not found:
            yield f'{cells[0].place}: no Colab badge: add [![Open in Colab]({BADGE})]({want})'
        yield from (f'{c.place}: the Colab badge leads to {url}, not to {want}'
                    for c, url in found if url != want)


def main(root:Path) -> int: # exit code
    "Check and report."
    site = read_site(root.resolve())
    counts = dict(notebooks=sum(map(is_notebook,
                                    site.pages)), links=sum(len(c.urls) for c in site.cells),
                  labels=sum(len(c.labels) for c in site.cells),
                  references=sum(len(c.references)
                                 for c in site.cells), figures=sum(map(is_figure, site.cells)),
                  outputs=sum(len(c.outputs) for c in site.cells))
    faults = [
        f for check in (check_links, check_references, check_figures, check_outputs, check_badges)
        for f in check(site)
    ]
    if not counts['notebooks']: faults.append(f'{root}: no notebooks')
    print('\n'.join(faults) or 'docs ok: ' + ', '.join(f'{n} {what}' for what, n in counts.items()))
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
