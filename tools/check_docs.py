"""Check the documentation for faults with which Quarto builds a broken page but reports no error.

usage: python tools/check_docs.py [FOLDER]
Checks links and their anchors, cross-references, citations, labels, alt texts, stored outputs and
Colab badges of the notebooks, and links of the Markdown files. One line per fault; exit code 1.
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

from make_examples import PAGES

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
    "All pages, with settings and bibliography."
    root: Path
    ini: dict # `settings.ini`
    cells: list # of all pages
    pages: dict # path -> cells
    cited: set # keys in the bibliography


def walk(tokens:list):
    "Yield all tokens, depth first."
    for token in tokens:
        yield token
        yield from walk(token.get('children', []))


def plain(token:dict, code:bool=False) -> str:
    "Return the text of a token, with inline code or without."
    if 'children' in token: return ''.join(plain(t, code) for t in token['children'])
    kept = ('text', 'codespan') if code else ('text',)
    return token['raw'] if token['type'] in kept else ' '


def read_cell(path:Path, place:str, cell:dict) -> Cell:
    "Read a cell and the Markdown that it shows; an escaped `@` is not a reference."
    code, outputs = cell['cell_type'] == 'code', cell.get('outputs', [])
    markdown, html = ('\n\n'.join(o.get('data', {}).get(f'text/{kind}', '') for o in outputs)
                      for kind in ('markdown', 'html'))
    options = {k: v.strip(' \'"') for k, v in option_re.findall(cell['source'])} if code else {}
    tokens = to_tokens((markdown if code else cell['source']).replace(r'\@', ''))
    found = list(walk(tokens))
    of = lambda *types: [t for t in found if t['type'] in types]
    text = '\n\n'.join(map(plain, of('paragraph', 'heading', 'block_text', 'table_cell')))
    html = ' '.join([html, *(t['raw'] for t in of('inline_html', 'block_html'))])
    urls = [t['attrs']['url'] for t in of('link', 'image')]
    urls += re.findall(r'\b(?:href|src)="([^"]+)"', html)
    labels = [v for k, v in options.items() if k == 'label'] + id_re.findall(text)
    return Cell(path, place, options, outputs, tokens, urls, labels, cite_re.findall(text))


def read_site(root:Path) -> Site:
    "Read all notebooks, the Markdown files at the root and the README.md of its folders."
    ini, cells, pages = ConfigParser(delimiters=['=']), [], {}
    ini.read(root/'settings.ini', encoding='utf-8')
    nbs = root/ini['DEFAULT']['nbs_path']
    for path in sorted(nbs.rglob('[!._]*.ipynb')):
        for i, c in enumerate(nbformat.read(path, 4).cells, 1):
            cells.append(read_cell(path, f'{path.relative_to(root)} cell {i}', c))
    for path in sorted([*root.glob('*.md'), *root.glob('*/README.md')]):
        whole = dict(cell_type='markdown', source=path.read_text(encoding='utf-8'))
        cells.append(read_cell(path, str(path.relative_to(root)), whole))
    for c in cells: pages.setdefault(c.path, []).append(c)
    cited = set(bib_re.findall((nbs/'references.bib').read_text(encoding='utf-8')))
    return Site(root, dict(ini['DEFAULT']), cells, pages, cited)


def is_notebook(path:Path) -> bool:
    "Is a page a notebook?"
    return path.suffix == '.ipynb'


def find_anchors(cells:list) -> set:
    "List the anchors of a page: Pandoc's in notebooks, with none for the title, else GitHub's."
    found, count = {label for c in cells for label in c.labels}, Counter()
    notebook = is_notebook(cells[0].path)
    for token in walk([t for c in cells for t in c.tokens]):
        if token['type'] in ('inline_html', 'block_html'):
            found |= set(re.findall(r'\bid="([^"]+)"', token['raw']))
        if token['type'] != 'heading' or id_re.search(plain(token)): continue
        if notebook and token['attrs']['level'] == 1: continue
        heading = re.sub(r'\{[^{}]*\}\s*$', '', plain(token, code=True)).lower()
        words = re.sub(r'[^\w\s.-]', '', heading)
        pandoc = re.sub(r'^[\W\d_]+', '', '-'.join(words.split())) or 'section'
        name = pandoc if notebook else words.replace('.', '').strip().replace(' ', '-')
        found.add(f'{name}-{count[name]}' if count[name] else name)
        count[name] += 1
    return found


def follow(site:Site, path:Path, url:str) -> str: # what is wrong with the link, '' where nothing is
    "Follow a link from a page within the site and the repository."
    ini, nbs = site.ini, site.root/site.ini['nbs_path']
    blob = f"{ini['user']}/{ini['repo']}/blob/{ini['branch']}/"
    home = ini['doc_host'] + ini['doc_baseurl']
    ours = f'https://github.com/{blob}', f'{COLAB}github/{blob}', home
    start = next(filter(url.startswith, ours), '')
    rest = urlsplit(url.removeprefix(start))
    name, fragment = unquote(rest.path).lstrip('/' if start else ''), unquote(rest.fragment)
    if not start and (rest.scheme or rest.netloc): return ''
    if start == home: # nbdev names a page after its notebook, without the number
        html = lambda p: re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem) + '.html'
        target = next((p for p in site.pages if html(p) == (name or 'index.html')), nbs/name)
    else: target = ((site.root if start else path.parent)/name if name else path).resolve()
    made = target.parent == nbs/'examples' and target.name in PAGES # when the site is built
    if not (made or target.exists()): return f'{name} does not exist'
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
    "Is each `@key` a citation or the label of something shown on its page, set once there?"
    for cells in [cells for path, cells in site.pages.items() if is_notebook(path)]:
        shown = {label for c in cells if c.outputs or not c.options for label in c.labels}
        before = set()
        for c, key in [(c, k) for c in cells for k in c.references]:
            if not {key, key[0].lower() + key[1:]} & (shown | site.cited):
                yield (f'{c.place}: @{key} is neither the label of something shown on this page '
                       'nor in references.bib')
        for c, label in [(c, label) for c in cells for label in c.labels]:
            if label in before: yield f'{c.place}: label {label} is set before on this page'
            before.add(label)


def is_figure(cell:Cell) -> bool:
    "Does a labelled cell store an image?"
    has_image = any('image/png' in o.get('data', {}) for o in cell.outputs)
    return has_image and cell.options.get('label', '').startswith('fig-')


def check_figures(site:Site):
    "Has each figure an alt text other than its caption?"
    for c in filter(is_figure, site.cells):
        label, alt = c.options['label'], c.options.get('fig-alt', '')
        if alt in ('', c.options.get('fig-cap')):
            yield f'{c.place}: {label} has no fig-alt of its own: describe what it shows'


def check_outputs(site:Site):
    "Are stored outputs free of errors, progress bars and paths of one machine?"
    for c, output in [(c, o) for c in site.cells for o in c.outputs]:
        shown = [str(v) for k, v in output.get('data', {}).items() if k.startswith('text/')]
        text = ' '.join([output.get('text', ''), *shown])
        if output['output_type'] == 'error' or output.get('name') == 'stderr':
            yield f'{c.place}: stores stderr'
        if bar_re.search(text): yield f'{c.place}: stores a progress bar'
        for path in path_re.findall(text): yield f'{c.place}: stores {path}, a path of one machine'


def check_badges(site:Site):
    "Does each notebook open in Colab?"
    ini = site.ini
    start = f"{COLAB}github/{ini['user']}/{ini['repo']}/blob/{ini['branch']}"
    for path, cells in [(p, cells) for p, cells in site.pages.items() if is_notebook(p)]:
        right = f'{start}/{path.relative_to(site.root)}'
        links = [(c, t) for c in cells for t in walk(c.tokens) if t['type'] == 'link']
        is_badge = lambda link: any(i.get('attrs') == {'url': BADGE} for i in link['children'])
        found = [(c, t['attrs']['url']) for c, t in links if is_badge(t)]
        if not found:
            yield f'{cells[0].place}: no Colab badge: add [![Open in Colab]({BADGE})]({right})'
        yield from (f'{c.place}: the Colab badge leads to {url}, not to {right}'
                    for c, url in found if url != right)


def main(root:Path) -> int: # exit code
    "Check and report."
    site = read_site(root.resolve())
    n = lambda field: sum(len(getattr(c, field)) for c in site.cells)
    counts = dict(
        notebooks=sum(map(is_notebook, site.pages)), links=n('urls'), labels=n('labels'),
        references=n('references'), figures=sum(map(is_figure, site.cells)), outputs=n('outputs'))
    checks = check_links, check_references, check_figures, check_outputs, check_badges
    faults = [fault for check in checks for fault in check(site)]
    if not counts['notebooks']: faults.append(f'{root}: no notebooks')
    print('\n'.join(faults) or 'docs ok: ' + ', '.join(f'{v} {k}' for k, v in counts.items()))
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
