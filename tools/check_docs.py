"""Check the documentation site without Quarto.

nbdev and Quarto build a site from broken cross-references, links and citations with exit code 0.
This runs nbdev's half of the build in a temporary copy of the working tree, then looks for them.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune
import yaml
from bs4 import BeautifulSoup

REF_KINDS = set('cau cnj cor def eq exm exr fig imp lem lst nte prp rem sec sol tbl thm tip wrn'
                .split()) # what Quarto numbers: `@fig-x` is a cross-reference, `@x` a citation
DIRECTIVES = set('default_exp exec_doc export exporti exports filter_stream hide'.split())
CELL_OPTIONS = set('''
    cap-location classes code-fold code-line-numbers code-overflow code-summary column echo error
    eval fig-align fig-alt fig-cap fig-cap-location fig-column fig-height fig-link fig-subcap
    fig-width include label layout layout-align layout-ncol layout-nrow layout-valign lst-cap
    lst-label output tbl-cap tbl-cap-location tbl-colwidths tbl-subcap warning'''.split())
FRONT_MATTER = {'title', 'description', 'output-file', 'skip_exec', 'skip_showdoc'}
CONFIG_TYPES = { # dotted path in `_quarto.yml` -> type
    'project.type': str, 'project.render': list, 'metadata-files': list, 'bibliography': str,
    'website.title': str, 'website.site-url': str, 'website.repo-url': str,
    'website.repo-actions': list, 'website.navbar': dict, 'website.sidebar.id': str,
    'website.sidebar.contents': str, 'format.html.theme.light': str,
    'format.html.theme.dark': str, 'format.html.css': str, 'format.html.toc': bool,
    'format.html.code-tools': bool, 'format.html.ipynb-filters': list,
}
RENDER = ['/nbs/index.ipynb', '/nbs/*.ipynb', '/*.ipynb']
STORED = { # label prefix -> output types, one of which must be stored
    'fig': {'image/png', 'image/svg+xml', 'image/jpeg'},
    'tbl': {'text/html', 'text/markdown'},
}
COLAB = 'https://colab.research.google.com/'
BADGE = COLAB + 'assets/colab-badge.svg'
PREVIEW = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{max-width: 50rem; margin: auto; font-family: sans-serif}} img {{max-width: 100%}}
pre {{overflow-x: auto}}</style></head><body>{body}</body></html>
'''

id_re = re.compile(r'\{(?:[^{}]*\s)?#([\w-]+)[^{}]*\}') # Pandoc's `{#id .class}`
cite_re = re.compile(r'(?<![\w.@])@([A-Za-z0-9_](?:[\w:.#$%&+?<>~/-]*[A-Za-z0-9_])?)')
option_re = re.compile(r'#\|\s*([\w-]+)\s*:(?:\s|$)')
bib_re = re.compile(r'^\s*@(?!comment|string|preamble)\w+\s*\{\s*([^,\s]+)\s*,', re.M | re.I)
to_tokens = mistune.create_markdown(renderer='ast', plugins=['table', 'math', 'footnotes'])


@dataclass
class Cell:
    "One cell, as written or as processed."
    where: str # `cell 3` of the notebook as written, or `added by nbdev`
    kind: str # `markdown`, `code` or `raw`
    source: str
    outputs: list = field(default_factory=list)
    tokens: list = field(default_factory=list) # mistune's, of the Markdown in source or outputs


@dataclass
class Page:
    "A notebook as nbdev hands it to Quarto, beside the notebook as written."
    name: str # file name, `00_data.ipynb`
    meta: dict # front matter
    cells: list[Cell]
    written: list[Cell]


@dataclass
class Site:
    "Everything the checks look at."
    root: Path # working tree in which nbdev has written `_proc`
    settings: dict # `settings.ini`
    config: dict # `_quarto.yml`
    nbdev: dict # `nbdev.yml`, written by nbdev
    sidebar: dict # `sidebar.yml`, written by nbdev
    notebooks: list[str] # names in the working tree
    pages: list[Page]

    @property
    def proc(self) -> Path:
        "Where the pages are."
        return self.root/'_proc'


def read_site(
    root:Path, # working tree in which nbdev has written `_proc`
) -> Site:
    "Read pages and configuration."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    settings = dict(ini['DEFAULT'])
    nbs, proc = root/settings['nbs_path'], root/'_proc'
    names = sorted(p.name for p in nbs.glob('*.ipynb') if p.name[0] not in '._')
    pages = [read_page(p, nbs/p.name) for p in sorted(proc.glob('*.ipynb'))]
    files = (root/'_quarto.yml', proc/'nbdev.yml', proc/'sidebar.yml')
    return Site(root, settings, *map(read_yaml, files), names, pages)


def read_yaml(
    path:Path,
) -> dict: # empty where the file is absent or holds no mapping
    "Read a YAML mapping."
    data = yaml.safe_load(path.read_text(encoding='utf-8')) if path.is_file() else None
    return data if isinstance(data, dict) else {}


def read_page(
    path:Path, # processed notebook
    source:Path, # the notebook it was made from
) -> Page:
    "Read one page."
    before = json.loads(source.read_text(encoding='utf-8'))['cells'] if source.is_file() else []
    after = json.loads(path.read_text(encoding='utf-8'))['cells']
    where = {c['id']: f'cell {i}' for i, c in enumerate(before, 1) if 'id' in c}
    cells = [read_cell(c, where.get(c.get('id'), 'added by nbdev')) for c in after]
    written = [read_cell(c, f'cell {i}') for i, c in enumerate(before, 1)]
    return Page(path.name, front_matter(cells), cells, written)


def read_cell(
    cell:dict, # as in the notebook's JSON
    where:str, # how a problem names it
) -> Cell:
    "Read one cell and parse the Markdown in its source or outputs."
    source, outputs = ''.join(cell['source']), cell.get('outputs', [])
    shown = [''.join(o['data'].get('text/markdown', '')) for o in outputs if 'data' in o]
    text = source if cell['cell_type'] == 'markdown' else '\n\n'.join(shown)
    tokens = to_tokens(text.replace(r'\@', '')) # an escaped `@` refers to nothing
    return Cell(where, cell['cell_type'], source, outputs, tokens)


def front_matter(
    cells:list[Cell],
) -> dict: # empty where there is none
    "The YAML that nbdev writes into a page's first cell."
    text = cells[0].source.strip() if cells and cells[0].kind == 'raw' else ''
    data = yaml.safe_load(text.strip('-')) if text.startswith('---') else None
    return data if isinstance(data, dict) else {}


def walk(tokens:list[dict]) -> Iterator[dict]:
    "All tokens, depth first."
    for token in tokens:
        yield token
        yield from walk(token.get('children', []))


def plain(
    token:dict, # a block or inline token
    code:bool=False, # keep inline code
) -> str: # its words, line breaks kept
    "Text of `token` without marks."
    if token['type'] in ('softbreak', 'linebreak'):
        return '\n'
    if 'children' in token:
        return ''.join(plain(o, code) for o in token['children'])
    kept = token['type'] == 'text' or (code and token['type'] == 'codespan')
    return token['raw'] if kept else ' '


def texts(cell:Cell) -> list[str]:
    "Running text: one string a paragraph, heading or table cell, code and formulas left out."
    kinds = ('paragraph', 'heading', 'block_text', 'table_cell')
    return [plain(t) for t in walk(cell.tokens) if t['type'] in kinds]


def slug(
    heading:str, # its words
) -> str: # Pandoc's automatic identifier
    "Anchor that Pandoc gives a heading."
    words = re.sub(r'\{[^{}]*\}\s*$', '', heading).lower()
    words = '-'.join(re.sub(r'[^\w\s.-]', '', words).split())
    return re.sub(r'^[\W\d_]+', '', words) or 'section'


def option_lines(cell:Cell) -> list[str]:
    "The leading `#|` lines of a code cell."
    lines = cell.source.splitlines() if cell.kind == 'code' else []
    stop = next((i for i, o in enumerate(lines) if not re.match(r'\s*#\s*\|', o)), len(lines))
    return lines[:stop]


def options(
    cell:Cell,
) -> dict: # empty where there are none, or they are no mapping
    "Quarto's cell options."
    try:
        data = yaml.safe_load('\n'.join(o.split('|', 1)[1] for o in option_lines(cell)))
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else {}


def labels(page:Page) -> list[tuple[Cell, str]]:
    "Labels and identifiers set by hand, in code and Markdown cells."
    pairs = [(c, str(options(c)['label'])) for c in page.cells if 'label' in options(c)]
    return pairs + [(c, m) for c in page.cells for text in texts(c) for m in id_re.findall(text)]


def html_values(token:dict, *keys:str) -> list[str]:
    "Values of attributes in a piece of HTML."
    html = token['raw'] if token['type'] in ('inline_html', 'block_html') else ''
    tags = BeautifulSoup(html, 'html.parser').find_all(True)
    return [tag[key] for tag in tags for key in keys if tag.has_attr(key)]


def anchors(page:Page) -> set[str]:
    "What a `#fragment` may name on a page."
    found, seen = {label for _, label in labels(page)}, {}
    for token in walk([t for c in page.cells for t in c.tokens]):
        found.update(html_values(token, 'id', 'name'))
        if token['type'] == 'heading' and not id_re.search(plain(token)):
            name = slug(plain(token, code=True))
            seen[name] = seen.get(name, -1) + 1
            found.add(f'{name}-{seen[name]}' if seen[name] else name)
    return found


def links(cell:Cell) -> list[str]:
    "Addresses of the links and images in a cell."
    tokens = list(walk(cell.tokens))
    marked = [t['attrs']['url'] for t in tokens if t['type'] in ('link', 'image')]
    return marked + [url for t in tokens for url in html_values(t, 'href', 'src')]


def references(page:Page) -> list[tuple[Cell, str]]:
    "Keys after `@` in running text: cross-references and citations."
    return [(c, key) for c in page.cells for text in texts(c) for key in cite_re.findall(text)]


def is_crossref(
    key:str, # without the `@`
) -> bool:
    "Does Quarto take `@key` for a cross-reference, not a citation?"
    return '-' in key and key.split('-')[0].lower() in REF_KINDS


def say(
    page:Page|str, # or the name of another file
    cell:Cell|str, # or which part of it
    what:str,
    cure:str,
) -> str:
    "One problem in one line."
    name = page.name if isinstance(page, Page) else page
    return f"{name}: {getattr(cell, 'where', cell)}: {what}; {cure}"


def lookup(
    config:dict,
    key:str, # dotted path
) -> object: # none where absent
    "Value at a dotted path."
    for part in key.split('.'):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def check_config(site:Site) -> Iterator[str]:
    "Are the keys there that nbdev and Quarto need, and is it one file in both places?"
    for key, kind in CONFIG_TYPES.items():
        value = lookup(site.config, key)
        if not isinstance(value, kind):
            yield say('_quarto.yml', key, f'is {value!r}', f'set it to a {kind.__name__}')
    render, files = lookup(site.config, 'project.render') or [], site.config.get('metadata-files')
    for pattern in [o for o in RENDER if o not in render]:
        yield say('_quarto.yml', 'project.render', f'lacks "{pattern}"', 'add it: pages go missing')
    if files != ['nbdev.yml', 'sidebar.yml']:
        yield say('_quarto.yml', 'metadata-files', f'is {files}', 'make it nbdev.yml, sidebar.yml')
    if lookup(site.config, 'project.output-dir'):
        yield say('_quarto.yml', 'project.output-dir', 'is set', 'remove it: nbdev sets its own')
    if 'custom_quarto_yml' in site.settings:
        yield say('settings.ini', 'custom_quarto_yml', 'is set', 'remove it: it deletes our file')
    copy = site.proc/'_quarto.yml'
    if not copy.is_file() or copy.read_bytes() != (site.root/'_quarto.yml').read_bytes():
        yield say('nbs/_quarto.yml', 'file', 'is not ../_quarto.yml', 'make it a symlink to it')


def check_config_files(site:Site) -> Iterator[str]:
    "Do the files exist that `_quarto.yml` names, seen from a page?"
    html = lookup(site.config, 'format.html') or {}
    named = [html.get('css'), site.config.get('bibliography'), *(html.get('ipynb-filters') or [])]
    for name in named:
        if name and not (site.proc/name).is_file():
            yield say('_quarto.yml', 'file', f'{name} is absent', 'put it in nbs/, or correct it')


def check_settings_agree(site:Site) -> Iterator[str]:
    "Does `_quarto.yml` say of the site what `settings.ini` says?"
    ours, theirs = site.config.get('website') or {}, site.nbdev.get('website') or {}
    if not theirs:
        yield say('nbdev.yml', 'website', 'is empty', 'nbdev writes it: look at settings.ini')
    for key, value in theirs.items():
        have = ours.get(key, value)
        if have != value:
            yield say('_quarto.yml', f'website.{key}', f'is {have!r}', f'settings.ini: {value!r}')


def nav_links(items:list) -> Iterator[str]:
    "Addresses in a navbar, menus included."
    for item in items or []:
        yield item if isinstance(item, str) else item.get('href', '')
        yield from nav_links(item.get('menu')) if isinstance(item, dict) else ()


def check_navigation(site:Site) -> Iterator[str]:
    "Does the sidebar list every page, and the navbar lead somewhere?"
    names = {p.name for p in site.pages}
    listed = lookup(site.sidebar, 'website.sidebar.contents') or []
    for name in sorted(names - {o for o in listed if isinstance(o, str)}):
        yield say('sidebar.yml', name, 'is not listed', 'remove custom_sidebar from settings.ini')
    known = names | {'', f"sidebar:{lookup(site.config, 'website.sidebar.id')}"}
    navbar = lookup(site.config, 'website.navbar') or {}
    for href in [h for side in ('left', 'right', 'tools') for h in nav_links(navbar.get(side))]:
        if href not in known and not href.startswith('https://'):
            yield say('_quarto.yml', 'website.navbar', f'leads to {href}', 'correct the address')


def check_pages(site:Site) -> Iterator[str]:
    "Is every notebook a page with a title, a claim and a file name of its own?"
    if not site.notebooks:
        yield say('nbs', 'folder', 'holds no notebook', 'add chapters')
    for name in sorted(set(site.notebooks) ^ {p.name for p in site.pages}):
        what = 'became no page' if name in site.notebooks else 'is a page without a notebook'
        yield say(name, 'page', what, "no part of the checkout's path may start with a dot")
    written = {}
    for page in site.pages:
        if not (page.meta.get('title') and page.meta.get('description')):
            yield say(page, 'cell 1', 'no title or no claim', 'write `# name` and `> claim`')
        for key in sorted(set(page.meta) - FRONT_MATTER):
            yield say(page, 'cell 1', f'`{key}` became front matter', 'move the list down a cell')
        html = page.meta.get('output-file', page.name)
        if written.setdefault(html, page) is not page:
            yield say(page, 'page', f'{html} is also written by {written[html].name}', 'rename one')


def check_options(site:Site) -> Iterator[str]:
    "Are the cell options that reach Quarto a YAML mapping, at the top of the cell?"
    for page, cell in [(p, c) for p in site.pages for c in p.cells if c.kind == 'code']:
        head = option_lines(cell)
        if head and not options(cell):
            yield say(page, cell, f'{head} is no YAML mapping', 'quote the value, or correct it')
        for line in cell.source.splitlines()[len(head):]:
            if re.match(r'#\s*\|', line):
                yield say(page, cell, f'`{line}` comes after code', 'move it to the top')


def check_directives(site:Site) -> Iterator[str]:
    "Is each `#|` line, as written, one that nbdev or Quarto acts on?"
    bare = DIRECTIVES | set(site.settings.get('tst_flags', '').split())
    for page, cell in [(p, c) for p in site.pages for c in p.written]:
        for line in option_lines(cell):
            key, words = option_re.match(line), line.split('|', 1)[1].split()
            if not (key.group(1) in CELL_OPTIONS if key else words and words[0] in bare):
                cure = 'a typo, or a value on two lines (nbdev keeps only `#| key: value` lines)'
                yield say(page, cell, f'`{line}` does nothing', cure)


def check_labels(site:Site) -> Iterator[str]:
    "Is each label set once on its page?"
    for page in site.pages:
        names = [label for _, label in labels(page)]
        for i, (cell, label) in enumerate(labels(page)):
            if label in names[:i]:
                yield say(page, cell, f'label {label} is set twice', 'rename one')


def check_crossrefs(site:Site) -> Iterator[str]:
    "Does each `@fig-x` name a label on its own page? Quarto's websites have no others."
    numbered = lookup(site.config, 'format.html.number-sections') is True
    for page in site.pages:
        known = {label for _, label in labels(page)}
        for cell, key in [(c, k) for c, k in references(page) if is_crossref(k)]:
            if key[0].lower() + key[1:] not in known:
                yield say(page, cell, f'@{key} names no label here', 'correct it, or use a link')
            elif key.lower().startswith('sec-') and not numbered:
                yield say(page, cell, f'@{key} needs numbered sections', f'write [words](#{key})')


def check_citations(site:Site) -> Iterator[str]:
    "Is each cited key in the bibliography?"
    path = site.proc/str(site.config.get('bibliography'))
    known = set(bib_re.findall(path.read_text(encoding='utf-8'))) if path.is_file() else set()
    for page in site.pages:
        for cell, key in references(page):
            if not is_crossref(key) and key not in known:
                yield say(page, cell, f'@{key} is not in {path.name}', r'add it; a plain @ is \@')


def follow(
    site:Site,
    page:Page, # where the link is
    url:str,
) -> str|None: # what is wrong with it
    "Follow one link, as far as the site or the repository goes."
    home = site.settings['doc_host'] + site.settings['doc_baseurl'] + '/'
    files = f"{site.settings['git_url']}/blob/{site.settings['branch']}/"
    inside = url.removeprefix(home) if url.startswith(home) else url
    target, anchor = unquote(urlsplit(inside).path), unquote(urlsplit(inside).fragment)
    if url.startswith(files):
        path = unquote(urlsplit(url.removeprefix(files)).path)
        return None if (site.root/path).exists() else f'{path} is not in the repository'
    if urlsplit(inside).scheme or inside.startswith('//'):
        return None
    target = target.removeprefix('./').lstrip('/') or ('index.html' if url == home else page.name)
    names = {n: p for p in site.pages for n in (p.name, p.meta.get('output-file'))}
    if target not in names:
        return None if (site.proc/target).is_file() else f'{target} is not on the site'
    missing = anchor and anchor not in anchors(names[target])
    return f'#{anchor} is not on {names[target].name}' if missing else None


def check_links(site:Site) -> Iterator[str]:
    "Does each link inside the site or the repository lead somewhere?"
    cure = 'correct the link; a file outside nbs/ needs its GitHub address'
    for page, cell in [(p, c) for p in site.pages for c in p.cells]:
        for url in links(cell):
            problem = follow(site, page, url)
            if problem:
                yield say(page, cell, f'link to {url}: {problem}', cure)


def check_outputs(site:Site) -> Iterator[str]:
    "Is no error stored as an output?"
    for page, cell in [(p, c) for p in site.pages for c in p.written]:
        for output in [o for o in cell.outputs if o.get('output_type') == 'error']:
            yield say(page, cell, f"stored error {output.get('ename')}", 'run the notebook again')


def check_figures(site:Site) -> Iterator[str]:
    "Has each cell labelled as a figure or table one stored, and a caption?"
    for page, cell in [(p, c) for p in site.pages for c in p.cells]:
        label = str(options(cell).get('label', ''))
        kind = label.split('-')[0]
        if kind not in STORED:
            continue
        if not any(STORED[kind] & set(o.get('data', {})) for o in cell.outputs):
            yield say(page, cell, f'{label} has no stored output', 'run the notebook')
        if not options(cell).get(f'{kind}-cap'):
            yield say(page, cell, f'{label} has no {kind}-cap', 'say what is shown, n, error bars')


def check_divs(site:Site) -> Iterator[str]:
    "Is each `:::` block closed?"
    for page in site.pages:
        opened = []
        lines = [(c, o.strip()) for c in page.cells for t in texts(c) for o in t.splitlines()]
        for cell, line in [(c, o) for c, o in lines if o.startswith(':::')]:
            if line.strip(':'):
                opened.append((cell, line))
            elif opened:
                opened.pop()
            else:
                yield say(page, cell, '":::" closes nothing', 'remove it')
        for cell, line in opened:
            yield say(page, cell, f'"{line}" is never closed', 'end the block with ":::"')


def check_badges(site:Site) -> Iterator[str]:
    "Has each notebook the Colab badge with its own address?"
    ini = site.settings
    folder = f"{ini['user']}/{ini['repo']}/blob/{ini['branch']}/{ini['nbs_path']}"
    for page in site.pages:
        want = f'{COLAB}github/{folder}/{page.name}'
        tokens = [(c, t) for c in page.cells for t in walk(c.tokens) if t['type'] == 'link']
        found = [(c, t['attrs']['url']) for c, t in tokens
                 if BADGE in [o['attrs']['url'] for o in walk([t]) if o['type'] == 'image']]
        if not found:
            yield say(page, 'cell 2', 'no Colab badge', f'add [![Open in Colab]({BADGE})]({want})')
        for cell, url in found:
            if url != want:
                yield say(page, cell, f'badge leads to {url}', f'it should be {want}')


CHECKS = (check_config, check_config_files, check_settings_agree, check_navigation, check_pages,
          check_options, check_directives, check_labels, check_crossrefs, check_citations,
          check_links, check_outputs, check_figures, check_divs, check_badges)


def check(
    site:Site,
) -> list[str]: # one line a problem
    "Run all checks."
    return [problem for run in CHECKS for problem in run(site)]


def summary(site:Site) -> str:
    "What was looked at, in one line."
    cells = [c for p in site.pages for c in p.cells]
    counts = {'pages': len(site.pages), 'cells': len(cells),
              'labels': sum(len(labels(p)) for p in site.pages),
              'references and citations': sum(len(references(p)) for p in site.pages),
              'links': sum(len(links(c)) for c in cells), 'checks': len(CHECKS)}
    return 'docs ok: ' + ', '.join(f'{n} {what}' for what, n in counts.items())


def copy_tree(
    root:Path, # git working tree
    to:Path, # new folder
) -> None:
    "Copy tracked and new files, symlinks as symlinks; ignored files stay behind."
    listing = ['git', 'ls-files', '-coz', '--exclude-standard']
    done = subprocess.run(listing, cwd=root, capture_output=True)
    if done.returncode:
        raise ValueError(f'{root} is no git working tree git can list: {os.fsdecode(done.stderr)}')
    for name in sorted(set(os.fsdecode(done.stdout).split('\0')) - {''}):
        if os.path.lexists(root/name):
            (to/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/name, to/name, follow_symlinks=False)


def process() -> None:
    "nbdev's half of `nbdev_docs`, in the current folder; the other half would install Quarto."
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    proc_nbs(force=True, n_workers=2) # each worker imports what the notebooks import


def build(
    root:Path, # git working tree; left as it is
    to:Path, # new folder
) -> list[str]: # problems that keep nbdev from processing
    "Copy the tree and process it there."
    if any(part.startswith('.') for part in to.resolve().parts):
        raise ValueError(f"nbdev skips paths with a part that starts with '.', as {to}: set TMPDIR")
    copy_tree(root, to)
    env = dict(os.environ, PYTHONPATH=str(to)) # the copy's package, not the installed one
    command = [sys.executable, str(Path(__file__).resolve()), '--process']
    done = subprocess.run(command, cwd=to, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    errors = re.findall(r'^\w*(?:Error|Exception):.*', done.stderr, re.M)
    what = ' | '.join(dict.fromkeys(errors)) or done.stderr.strip()[-500:]
    return [say('nbs', 'nbdev', what, 'docs run cells that import or export, and no others')]


def preview_cells(
    site:Site,
    page:Page,
) -> list[dict]: # cells for nbconvert
    "Page list and title on top, links to pages turned to HTML, input hidden where Quarto hides it."
    html = {p.name: p.meta['output-file'] for p in site.pages}
    menu = ' · '.join(f"[{p.meta.get('title')}]({html[p.name]})" for p in site.pages)
    head = f"{menu}\n\n# {page.meta.get('title')}\n\n> {page.meta.get('description')}"
    cells = [dict(cell_type='markdown', id='menu', metadata={}, source=head)]
    for cell in json.loads((site.proc/page.name).read_text(encoding='utf-8'))['cells']:
        hide = options(read_cell(cell, '')).get('echo') is False
        source = ''.join(cell['source'])
        for name in html:
            source = source.replace(f']({name}', f']({html[name]}')
        kept = {k: v for k, v in cell.items() if k != 'has_sd'} # nbdev's own mark
        if cell['cell_type'] != 'raw':
            cells.append({**kept, 'source': source, 'metadata': {'tags': ['no-input'] * hide}})
    return cells


def write_preview(
    site:Site,
    to:Path, # folder for the HTML files
) -> list[Path]: # one file a page; `index.html` is among them
    "Write the processed pages as plain HTML; only remote images ask for the network."
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config
    remove = dict(enabled=True, remove_input_tags={'no-input'})
    exporter = HTMLExporter(config=Config(TagRemovePreprocessor=remove), template_name='basic')
    to.mkdir(parents=True, exist_ok=True)
    written = {}
    for page in site.pages:
        nb = dict(cells=preview_cells(site, page), metadata={}, nbformat=4, nbformat_minor=5)
        body, _ = exporter.from_notebook_node(nbformat.reads(json.dumps(nb), as_version=4))
        html = PREVIEW.format(title=page.meta.get('title'), body=body)
        written[to/page.meta['output-file']] = html
    written.setdefault(to/'index.html', next(iter(written.values())))
    for path, body in written.items():
        path.write_text(body, encoding='utf-8')
    return list(written)


def main() -> int: # exit code
    "Build, check, report."
    parser = argparse.ArgumentParser(description='Check the documentation site without Quarto.')
    here = Path(__file__).resolve().parents[1]
    parser.add_argument('--root', type=Path, default=here, help='git working tree')
    parser.add_argument('--html', type=Path, help='also write an HTML preview into this folder')
    parser.add_argument('--process', action='store_true', help='only write _proc/, in this folder')
    args = parser.parse_args()
    if args.process:
        process()
        return 0
    if not args.root.is_dir():
        parser.error(f'{args.root} is no folder: pass the git working tree')
    with tempfile.TemporaryDirectory(prefix='cesm_docs_') as folder:
        tree = Path(folder)/'tree'
        site = None
        try:
            problems = build(args.root, tree)
        except ValueError as error:
            parser.error(str(error))
        if not problems:
            site = read_site(tree)
            problems = check(site)
        if site and args.html:
            print(f'preview: {len(write_preview(site, args.html))} pages in {args.html}')
        print('\n'.join(problems) or summary(site))
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
