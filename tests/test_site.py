"""The site as readers use it: reading order, landing page, links, alt texts and widths.

Quarto is not needed: nbdev's filters run without the notebooks' code, and mistune writes the pages.
If `_docs/` holds a site that Quarto has built, the same tests read its pages instead.
"""
import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import mistune
import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from matplotlib.text import Text
from PIL import Image

from cesm_nb.experiments.front_page import lead_scores, plot_lead
from cesm_nb.reporting.tables import to_markdown

from conftest import PATIENCE, ROOT

from check_docs import option_re
from make_examples import PAGES
from make_marks import describe_scores
from quarto_filter import badge_re, caption_re, joined, processed, tidied
from render_tables import render as render_tables

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BUILT = ROOT/'_docs' # by `nbdev_docs`, if Quarto is installed
BROWSERS = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
BROWSER = next((b for b in BROWSERS if b), None)
PHONE, PAPER, SCREEN = 390, 718, 1280 # widths in pixels
SECTIONS = ['Finding', 'Use it', 'Pipeline', 'Library']
to_html_only = mistune.create_markdown(escape=False, plugins=['table', 'math', 'footnotes'])
raw_re = re.compile(r'^```\{=html\}\n(.*?)^```$', re.M | re.S)
# rules of Quarto's cosmo theme that affect widths
THEME = '''body {margin: 0; font: 17px/1.5 sans-serif}
main {max-width: 800px; margin: auto; padding: 0 16px}
td, th {padding: .5rem; text-align: left} figure {margin: 1em 0}
@media (min-width: 1200px) {.column-page {margin: 0 -160px}}'''


def to_html(text):
    "Convert Markdown as Pandoc does, which leaves raw blocks as they are."
    parts = raw_re.split(re.sub(r'^:::.*$', '', text, flags=re.M))
    return ''.join(p if i % 2 else to_html_only(p) for i, p in enumerate(parts))


def show_output(output, options):
    "Return a stored output as HTML."
    data = {k: joined(v) for k, v in output.get('data', {}).items() if isinstance(v, (str, list))}
    alt, caption = options.get('fig-alt', ''), options.get('fig-cap', options.get('tbl-cap', ''))
    if 'image/png' in data:
        png = ''.join(data['image/png'].split())
        shown = f'<img alt="{escape(alt)}" src="data:image/png;base64,{png}">'
    elif 'image/svg+xml' in data:
        shown = f'<div role="img" aria-label="{escape(alt)}">{data["image/svg+xml"]}</div>'
    elif 'text/markdown' in data: shown = to_html(data['text/markdown'])
    else:
        text = data.get('text/plain', joined(output.get('text', '')))
        return f'<div class="cell-output"><pre>{escape(text)}</pre></div>'
    caption = f'<figcaption>{to_html(caption)}</figcaption>' if caption else ''
    column = f'column-{options["column"]}' if 'column' in options else ''
    label = f' id="{options["label"]}"' if 'label' in options else ''
    figure = f'<figure{label} class="cell-output-display">{shown}{caption}</figure>'
    return f'<div class="{column}">{figure}</div>'


def show_cell(cell):
    "Return a cell as HTML: the title from the front matter, text, or code with its outputs."
    source = joined(cell['source'])
    if cell['cell_type'] == 'raw':
        front = yaml.safe_load(source.strip().strip('-'))
        return f"<h1>{front['title']}</h1><p>{front.get('description', '')}</p>"
    if cell['cell_type'] == 'markdown': return to_html(source)
    options = {k: v.strip(' \'"') for k, v in option_re.findall(source)}
    if options.get('include') == 'false': return ''
    code = escape(re.sub(r'^#[|].*$', '', source, flags=re.M).strip())
    code = '' if options.get('echo') == 'false' else f'<pre><code>{code}</code></pre>'
    if options.get('code-fold') == 'true':
        code = f"<details><summary>{options['code-summary']}</summary>{code}</details>"
    return code + '\n'.join(show_output(o, options) for o in cell['outputs'])


def render(text):
    "Return a processed notebook as a page."
    body = '\n'.join(show_cell(c) for c in json.loads(text)['cells'])
    style = THEME + (ROOT/'nbs'/'styles.css').read_text()
    return f'''<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<style>{style}</style><body><main>{body}</main></body></html>'''


@pytest.fixture(scope='module')
def filtered():
    "Stem of each notebook -> its text after nbdev's filters, and after ours."
    assert len(NOTEBOOKS) > 60
    inner = {p.stem: processed(p.read_text(encoding='utf-8'), execute=False) for p in NOTEBOOKS}
    return {stem: (text, tidied(text)) for stem, text in inner.items()}


@pytest.fixture(scope='module')
def pages(request):
    "Stem of each notebook -> its page, from the built site or made without Quarto."
    if BUILT.exists():
        name = lambda p: re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem.lower()) + '.html'
        return {p.stem: (BUILT/name(p)).read_text(encoding='utf-8') for p in NOTEBOOKS}
    return {stem: render(after) for stem, (_, after) in request.getfixturevalue('filtered').items()}


def untidied(cell):
    "Source of a filtered cell without what is changed: folds, captions, a badge, full title."
    source = re.sub(r'\A#\| code-fold: true\n#\| code-summary: ".*"\n', '', ''.join(cell['source']))
    if '#| label:' not in source: source = caption_re.sub('', source)
    if cell['cell_type'] == 'markdown': return badge_re.sub(r'[\1]\2', source)
    return re.sub(r'^title: .*$', '', source, flags=re.M) if cell['cell_type'] == 'raw' else source


def test_filter_keeps_sources_as_lists_of_lines(filtered):
    "Quarto drops the line ends of a source stored as one string, merging front matter and code."
    n = 0
    for stem, (before, after) in filtered.items():
        old, new = (json.loads(text)['cells'] for text in (before, after))
        assert len(old) == len(new) > 0, stem
        for was, cell in zip(old, new):
            source, n = cell['source'], n + 1
            assert isinstance(source, list), f'{stem}: a source is one string: {source[:60]!r}'
            lines = ''.join(source).splitlines(keepends=True)
            assert source == lines, f'{stem}: an item is not one line'
            assert untidied(cell) in (untidied(was), untidied(was).strip()), stem
    assert len(filtered) > 60 and n > 1500


def entries(contents):
    "The entries of a sidebar, depth first."
    for item in contents: yield from entries(item['contents']) if 'contents' in item else [item]


def read_sidebar(path): return yaml.safe_load(path.read_text())['website']['sidebar']['contents']


def test_nbdev_keeps_our_sidebar():
    start, *sections = read_sidebar(ROOT/'nbs'/'sidebar.yml')
    assert start['href'] == 'index.ipynb' and [s['section'] for s in sections] == SECTIONS
    settings = (ROOT/'settings.ini').read_text()
    assert 'custom_sidebar = True' in settings, 'nbdev writes its own sidebar over ours'
    kept = subprocess.run(['git', 'check-ignore', 'nbs/sidebar.yml'], cwd=ROOT, capture_output=True,
                          timeout=PATIENCE)
    assert kept.returncode != 0, 'nbs/sidebar.yml is not under version control'
    pictures = re.findall(r'(?:favicon|image): (\S+)', (ROOT/'sidebar.yml').read_text())
    assert len(pictures) == 3 and [p for p in pictures if not (ROOT/p).exists()] == []


def test_page_names_agree():
    for entry in entries(read_sidebar(ROOT/'nbs'/'sidebar.yml')):
        stem = entry['href'].removesuffix('.ipynb').removeprefix('api/')
        first = nbformat.read(ROOT/'nbs'/entry['href'], 4).cells[0].source
        title = first.splitlines()[0].removeprefix('# ')
        number, _, name = stem.partition('_') if stem[0].isdigit() else ('', '', stem)
        expected = name if 'api/' in entry['href'] else name.replace('_', ' ')
        assert stem == 'index' or title == expected, f'{stem}: titled {title}'
        assert entry['text'].startswith(f'{number} {title}: '.lstrip()), entry['text']
        assert len(entry['text']) <= 65, entry['text']


def test_page_titles_match_the_sidebar(pages):
    for entry in entries(read_sidebar(ROOT/'nbs'/'sidebar.yml')):
        page, text = pages[Path(entry['href']).stem], entry['text']
        title = BeautifulSoup(page, 'html.parser').h1.get_text(strip=True)
        assert title == (text if text[0].isdigit() else text.split(':')[0])


def hrefs(page):
    return [a['href'] for a in BeautifulSoup(page, 'html.parser').select('main a[href]')]


def test_links_resolve(pages):
    names = {re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem) for p in NOTEBOOKS}
    folder = {p.stem: p.parent for p in NOTEBOOKS}
    def resolves(stem, href):
        path = href.split('#')[0]
        return re.match(r'[a-z]+:|#', href) or (folder[stem]/path).exists() or (
            Path(path).stem in names) or (
                path.removeprefix('../') in {f'examples/{p}' for p in PAGES})
    dead = [(stem, href) for stem, page in pages.items() for href in hrefs(page)
            if not resolves(stem, href)]
    assert dead == [] and sum(len(hrefs(p)) for p in pages.values()) > 150


def test_images_have_alt_texts(pages):
    images = [(stem, i) for stem, page in pages.items()
              for i in BeautifulSoup(page, 'html.parser').select('main img')]
    assert [stem for stem, i in images if not i.get('alt', '').strip()] == [] and len(images) > 40


def test_landing_page_shows_its_figure_within_400_words(pages):
    main = BeautifulSoup(pages['index'], 'html.parser').main
    figure = main.img
    before = ' '.join(s for s in figure.find_all_previous(string=True)
                      if s.find_parent('main') and not s.find_parent(['style', 'script']))
    assert 30 < len(before.split()) < 400
    doors = [row.td.text for row in figure.find_next('table').select('tr') if row.td]
    assert {'The finding', 'Audit your own data', 'Run it'} <= set(doors)


def test_citation_is_current(pages):
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    text = ' '.join(BeautifulSoup(pages['index'], 'html.parser').text.split())
    version, date = cff['version'], f"{cff['date-released']}"
    assert f'Version {version}, {date}, by the cesm_nb authors' in text
    fields = dict(author=f"{{{cff['authors'][0]['name']}}}", title=cff['title'], version=version,
                  date=date, url=cff['repository-code'])
    for key, value in fields.items():
        assert re.search(rf'{key} += {{{re.escape(value)}}}', text), key
    footer = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['page-footer']
    assert footer.startswith(f'cesm_nb {version}, {date}. ')


def test_social_card_is_current():
    with Image.open(ROOT/'nbs'/'social.png') as card:
        assert card.size == (1200, 630)
        made = describe_scores(lead_scores((ROOT,)))
        assert card.text['Description'] == made, 'run python tools/make_marks.py'


def test_landing_page_shows_no_python(pages):
    assert BeautifulSoup(pages['index'], 'html.parser').select('main code')
    assert 'lead_table' not in pages['index'] and 'read_results' not in pages['index']


def test_signatures_hold_no_links():
    "nbdev links names in backticks, also in code, where the raw link would show."
    page = tidied(processed((ROOT/'nbs'/'api/reporting.html.ipynb').read_text(encoding='utf-8')))
    cells = json.loads(page)['cells']
    data = [o['data'] for c in cells for o in c.get('outputs', []) if 'data' in o]
    outputs = [joined(d['text/markdown']) for d in data if 'text/markdown' in d]
    signatures = re.findall(r'^```python.*?^```', '\n'.join(outputs), re.M | re.S)
    assert len(signatures) >= 3
    assert not any('](' in s or '*args' in s for s in signatures)
    assert any('`fill_in`' in s for s in signatures), 'names stay'


@pytest.mark.parametrize('title, folded', [('leakage audit', True), ('core.settings', False)])
def test_signatures_of_chapters_are_folded(title, folded):
    doc = ('---\n\n[source](https://a.b/c.py)\n\n### read_x\n\n```python\ndef read_x()\n```\n\n'
           '*Read `x` & y.*')
    front = dict(cell_type='raw', source=f'---\ntitle: {title}\n---\n')
    shown = dict(cell_type='code', source='show_doc(read_x)', outputs=[
        dict(data={'text/markdown': [doc]})])
    cells = json.loads(tidied(json.dumps(dict(cells=[front, shown]))))['cells']
    after = joined(cells[1]['outputs'][0]['data']['text/markdown'])
    assert (after == doc) == (not folded)
    if folded:
        assert after.startswith('::: {#read_x}\n') and '<summary><code>read_x</code> Read' in after
        assert doc.partition('### read_x\n')[2] in after and '### ' not in after


def test_filter_removes_only_links_in_code():
    link = '[`read_x`](https://a.b/c.html#read_x)'
    out = dict(output_type='display_data',
               data={'text/markdown': [f'```python\nf(x) # of {link}\n```\n', f'of {link}']})
    nb = dict(cells=[dict(cell_type='code', source='#| output: asis\nshow_doc(f)', outputs=[out])])
    after = json.loads(tidied(json.dumps(nb)))['cells'][0]['outputs'][0]['data']['text/markdown']
    expected = f'```python\nf(x) # of `read_x`\n```\nof {link}'
    assert after == expected.splitlines(keepends=True)


@pytest.mark.parametrize('source, summary', [
    ('test_eq(f(1), 2)', 'Test'), ('x = f(1)\nassert x == 2', 'Test'),
    ('with a() as b:\n    test_eq(b, 1)', 'Test'),
    ('#| label: fig-a\nplot()', 'Code of the figure'), ('#| echo: false\nassert 1', ''),
    ('f(1)\n'*9 + 'f(1)', ''), ('f(1)\n'*10 + 'f(1)', 'Code'),
    ('f(1)', ''), ('!ls', '')])
def test_tests_and_plots_are_folded(source, summary):
    nb = dict(cells=[dict(cell_type='code', source=source, outputs=[])])
    after = joined(json.loads(tidied(json.dumps(nb)))['cells'][0]['source'])
    folded = f'#| code-fold: true\n#| code-summary: "{summary}"\n{source}'
    assert after == (folded if summary else source)


def tidied_cell(**cell):
    return json.loads(tidied(json.dumps(dict(cells=[cell]))))['cells'][0]


def test_badge_is_a_link():
    badge = '[![Open in Colab](https://c.d/assets/colab-badge.svg)](https://c.d/x.ipynb)'
    cell = tidied_cell(cell_type='markdown', source=[badge])
    assert cell['source'] == ['[Open in Colab](https://c.d/x.ipynb)']


@pytest.mark.parametrize('rows, label, folded', [
    (11, '', False), (12, '', True), (12, '#| label: tbl-a\n', False)])
def test_html_is_markdown_and_long_tables_are_folded(rows, label, folded):
    "For text/html Quarto adds require.js and jQuery from another server."
    html = '<table>' + '<tr><td>1</td></tr>'*rows + '</table>'
    data = {'text/html': [html], 'text/plain': ['1']}
    cell = tidied_cell(cell_type='code', source=f'{label}t', outputs=[dict(data=data)])
    data = cell['outputs'][0]['data']
    assert 'text/html' not in data and raw_re.fullmatch(joined(data['text/markdown']).strip())
    assert html in joined(data['text/markdown'])
    assert ('<details>' in joined(data['text/markdown'])) == folded
    capped = tidied_cell(cell_type='code', source=f'{label}#| tbl-cap: "All."\nt', outputs=[
        dict(data={'text/html': [html]})])
    shown = joined(capped['outputs'][0]['data']['text/markdown'])
    assert ('<summary>All.</summary>' in shown) == folded


odd_re = re.compile(r'(?<![\w.])-0\.0+(?!\d)|(?<![\w.-])1\.0{3,}(?!\d)') # -0.000 and 1.000


def find_tables(cell):
    "Outputs of a cell that hold a table, as text."
    texts = [joined(data.get(k, '')) for o in cell.get('outputs', [])
             for data in [o.get('data', {})] for k in ('text/html', 'text/markdown')]
    return [t for t in texts if '<table' in t or re.search(r'^\|.*\|\n\|[ :-]+\|', t, re.M)]


def test_tables_have_captions_and_no_signed_zero():
    "Also no 1.000: a share or a p value is 1, or 1.00 or > 0.9999 if it only rounds to it."
    shown, bare, odd = 0, [], {}
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            source = joined(cell['source'])
            tables = [] if re.search(r'^#\| (hide|include: false)', source, re.M) else (
                find_tables(cell))
            shown += len(tables)
            if tables and 'tbl-cap:' not in source: bare.append(f'{path.stem} {cell["id"]}')
            prose = [source] if cell['cell_type'] == 'markdown' else []
            found = odd_re.findall('\n'.join(tables + prose))
            if found: odd[f'{path.stem} {cell["id"]}'] = found[:3]
    assert bare == [] and odd == {} and shown > 60
    assert [bool(odd_re.search(t)) for t in ('-0.000 [', '1.0000', '-1.000', '11.000', '1.0001')
            ] == [True, True, False, False, False]


def test_published_tables_are_current_and_hold_no_signed_zero():
    "`tools/render_tables.py` makes them from the numbers beside them."
    for settings in sorted((ROOT/'results').glob('*/settings.json')):
        for name, (table, caption) in render_tables(settings.parent).items():
            text = (settings.parent/f'{name}.md').read_text()
            made = caption.replace('$', r'\$') + '\n\n' + to_markdown(table) + '\n'
            assert text == made, f'{settings.parent.name}/{name}.md: run tools/render_tables.py'
            assert not odd_re.search(text), f'{settings.parent.name}/{name}.md'


remote_re = re.compile(r"""
    <(?:img|script|iframe|source|video|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//
    | (?:@import\s+|url\()["']?(?:https?:)?//""", re.X | re.I)


def test_pages_load_nothing_from_other_servers(pages, reports):
    "So that they can be read behind the firewall of a hospital."
    found = {k: remote_re.findall(re.sub(r'<link rel="canonical"[^>]*>', '', p))[:3]
             for k, p in (pages | reports).items() if remote_re.search(p)}
    assert found == {}
    assert remote_re.search('<img alt="a" src="https://a.b/c.svg">')
    assert remote_re.search('<style>@import url("https://fonts.googleapis.com/css2")</style>')
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())['format']['html']
    assert config['html-math-method'] == 'mathml', 'MathJax is loaded from another server'
    for mode in ('light', 'dark'):
        assert config['theme'][mode] == ['cosmo', f'{mode}.scss']
        assert '\n$web-font-path: false;' in read_scss(mode)


MEASURE = '''
const found = {};
const scrolls = e => getComputedStyle(e).overflowX != 'visible';
const held = (e, top) => {
  for (let p = e; p && p != top; p = p.parentElement) if (scrolls(p)) return true;
  return false };
const room_of = t => (t.closest('.wide, .cell-output-display') || t).clientWidth;
const measure = d => {
  const wide = d.documentElement, room = wide.clientWidth;
  const out = [...d.body.querySelectorAll('table, pre, img, svg, p, li, h1, h2, h3, figure')]
    .filter(e => e.getBoundingClientRect().right > room + 1 && !held(e, d.body));
  const img = [...d.images].find(i => !i.src.endsWith('.svg'));
  const style = getComputedStyle(d.body), box = img && img.getBoundingClientRect();
  const lead = d.querySelector('#fig-lead img'), cells = [...d.querySelectorAll('#tbl-lead td')];
  return {width: wide.scrollWidth, height: wide.scrollHeight,
    inch: lead && lead.clientWidth/(lead.naturalWidth/192), // pixels of the screen per inch
    cell: Math.min(...cells.map(e => parseFloat(getComputedStyle(e).fontSize))),
    out: out.map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 40)),
    wide: [...d.querySelectorAll('table')].filter(t => t.scrollWidth > 1 + room_of(t)).length,
    top: box && box.top, bottom: box && box.bottom, ink: style.color, paper: style.backgroundColor};
};
const visit = (name, width, page) => new Promise(done => {
  const frame = document.createElement('iframe');
  frame.style.cssText = `border: 0; width: ${width}px; height: 800px`;
  frame.onload = () => {
    found[name + ' ' + width] = measure(frame.contentDocument); frame.remove(); done() };
  if (page.startsWith('<')) frame.srcdoc = page; else frame.src = page;
  document.body.append(frame);
});
(async () => {
  for (const [name, width, page] of PAGES) await visit(name, width, page);
  document.body.innerHTML = '<pre id="found"></pre>';
  document.getElementById('found').textContent = JSON.stringify(found);
})()'''


def measure(shown, folder):
    "Open pages (name, width, HTML or address) in one browser: 'name width' -> measurements."
    if BROWSER is None:
        pytest.skip('no Chromium on PATH: install it to test the pages in a browser')
    given = json.dumps(shown).replace('</', '<\\/')
    script = f'<script>const PAGES = {given};{MEASURE}</script>'
    harness = folder/'harness.html'
    harness.write_text(f'<!doctype html><meta charset="utf-8"><body>{script}')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files',
             '--hide-scrollbars', '--virtual-time-budget=20000',
             f'--user-data-dir={folder/"profile"}']
    done = subprocess.run([BROWSER, *flags, '--dump-dom', harness.as_uri()], capture_output=True,
                          text=True, timeout=PATIENCE)
    dom = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert dom, done.stderr[-2000:]
    return json.loads(unescape(dom[1]))


def darken(page): return page.replace('(prefers-color-scheme: dark)', 'all')


def on_paper(page): return page.replace('@media print', '@media all')


def report_pages(folder, monkeypatch):
    "A small page each of `cesm_check`, `cesm_audit` and `cesm_evaluate`."
    from cesm_nb.leakage import audit
    from cesm_nb.cohort.quality import write_report as write_check
    from cesm_nb.evaluate import write_report as write_scores
    from cesm_nb.synthetic.phantom import make_phantom
    data = make_phantom(folder/'phantom', 20, size_px=64, progress=False)
    write_check(data, folder/'check')
    # forests would take longer than all other tests here
    published = pd.read_csv(ROOT/'results'/'audit'/'controls.csv')
    monkeypatch.setattr(audit, 'run_controls', lambda *given: published)
    audit.write_audit(data, folder/'audit', progress=False)
    columns = [f'a long name of column {i}' for i in range(14)]
    numbers = pd.DataFrame([[.123456]*14], columns=columns)
    settings = dict(protocol='clinical', modality='CM', image_size=32,
                    tensors='/'.join(['folder']*30))
    config = dict(settings=settings, switches=dict(split_unit='patient', roi_source='none'),
                  phantom=True, weights_source='none')
    shutil.copy(ROOT/'nbs'/'social.png', folder/'roc.png')
    scores = write_scores(folder, config, 'Accuracy 0.50 on 4 test breasts.',
                          {'Scores': ('All of them.', numbers)}, [folder/'roc.png'])
    pages = dict(check=folder/'check'/'index.html', audit=folder/'audit'/'index.html',
                 evaluate=scores)
    return {k: p.read_text(encoding='utf-8') for k, p in pages.items()}


@pytest.fixture(scope='module')
def reports(module_path):
    with pytest.MonkeyPatch.context() as m: return report_pages(module_path, m)


@pytest.fixture(scope='module')
def measured(pages, reports, module_path):
    "Measurements of all pages on phone and screen; of command pages also on paper, dark, in print."
    name = lambda stem: re.sub(r'^\d+[a-zA-Z0-9]*_', '', stem.lower()) + '.html'
    chapters = {k: (BUILT/name(k)).as_uri() if BUILT.exists() else page
                for k, page in pages.items()}
    published = {f'published {p.parent.name}': p.as_uri()
                 for p in sorted((ROOT/'results').rglob('*.html'))}
    dark = {f'{k} dark': darken(p) for k, p in reports.items()}
    printed = {f'{k} print': on_paper(p) for k, p in reports.items()}
    head = "<!doctype html><meta name='viewport' content='width=device-width'>"
    wide = {'planted': f"{head}<body><p>{'x'*500}</p>"}
    both = [(k, w, p) for k, p in (chapters | published | reports | dark | printed | wide).items()
            for w in (PHONE, SCREEN)]
    on_page = [(k, PAPER, p) for k, p in (reports | printed | wide).items()]
    return measure(both + on_page, module_path)


def test_command_pages_start_with_a_summary(reports):
    for name, page in reports.items():
        first = BeautifulSoup(page, 'html.parser').body.find(['p', 'h2', 'table', 'img'])
        assert first.name == 'p' and 'lead' in first['class'], name
        assert 'PHANTOM' in first.text and len(first.text.split()) > 4, name
        assert 'name="viewport"' in page and '@media print' in page
        assert 'prefers-color-scheme: dark' in page
    body = BeautifulSoup(reports['evaluate'], 'html.parser').body
    order = [e.name for e in body.find_all(['img', 'table'])]
    assert order[:2] == ['table', 'img'] and order.count('table') > 1
    assert re.fullmatch('Scores of .+ on its test breasts, clinical protocol', body.h1.text)
    assert BeautifulSoup(reports['check'], 'html.parser').select_one('.lead b').text


def test_no_page_scrolls_sideways(measured):
    too_wide = {k: (v['width'], v['out']) for k, v in measured.items()
                if k[-9:] != 'print 390' and (v['width'] > int(k.split()[-1]) or v['out'])}
    planted = {f'planted {w}' for w in (PHONE, PAPER, SCREEN)}
    assert planted <= set(too_wide), 'a page that is too wide is not detected'
    assert {k: v for k, v in too_wide.items() if k not in planted} == {}
    assert len(measured) > 2*len(NOTEBOOKS) + 15


def test_figure_is_in_the_first_screen(measured):
    index = measured['index 1280']
    assert index['top'] < index['bottom'] <= 800


def read_scss(mode): return (ROOT/'nbs'/f'{mode}.scss').read_text()


def test_landing_table_and_figure_are_legible_on_a_phone(measured):
    index, points = measured['index 390'], [
        t.get_fontsize() for t in plot_lead(lead_scores((ROOT,))).figure.findobj(Text)
        if t.get_text()]
    assert min(points)/72*index['inch'] >= 9 and index['cell'] >= 9


def test_chapters_are_shorter_than_ten_screens(measured):
    *sections, library = read_sidebar(ROOT/'nbs'/'sidebar.yml')
    stems = [Path(e['href']).stem for e in entries(sections)]
    heights = {stem: measured[f'{stem} {SCREEN}']['height'] for stem in stems}
    assert {k: v for k, v in heights.items() if v > 8000} == {} and len(heights) > 20


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_theme_has_contrast(mode):
    colors = {k: luminance(str([int(v[i:i + 2], 16) for i in (0, 2, 4)]))
              for k, v in re.findall(r'^\$([\w-]+): #(\w{6});', read_scss(mode), re.M)}
    paper = [colors.get(k, 1) for k in ('body-bg', 'code-block-bg')] # white unless set
    text = [v for k, v in colors.items() if k in (
        'link-color', 'code-color', 'text-muted', 'body-color')]
    ratios = [(max(a, b) + .05)/(min(a, b) + .05) for a in paper for b in text]
    assert min(ratios) >= 4.5 and len(ratios) >= 6
    assert 1.05/(colors['primary'] + .05) >= 4.5 # white on the bar at the top


def luminance(color):
    "Relative luminance of `rgb(r, g, b)` as in WCAG."
    parts = [int(n)/255 for n in re.findall(r'\d+', color)[:3]]
    r, g, b = [c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4 for c in parts]
    return .2126*r + .7152*g + .0722*b


@pytest.mark.parametrize('mode, dark', [('', False), (' dark', True), (' print', False)])
def test_report_text_is_visible_in_light_dark_and_print(measured, mode, dark):
    for name in ('check', 'audit', 'evaluate'):
        page = measured[f'{name}{mode} 390']
        ink, paper = luminance(page['ink']), luminance(page['paper'])
        assert (paper < ink) == dark and (max(ink, paper) + .05)/(min(ink, paper) + .05) > 7, name


def test_wide_tables_scroll_on_a_phone_and_fit_a_screen(measured):
    "Wide content scrolls in its container; on a screen the tables of all chapters fit."
    assert {p.stem: n for p in NOTEBOOKS if (n := measured[f'{p.stem} 1280']['wide'])} == {}
    assert measured['leakage.ladder 390']['wide'] > 0 and measured['evaluate 390']['wide'] > 0
