"The documentation: this repository and a toy site pass `tools/check_docs.py`, planted faults fail."
import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize

import nbformat
import pytest
from nbformat.v4 import new_code_cell as code
from nbformat.v4 import new_markdown_cell as text
from nbformat.v4 import new_notebook, new_output

from conftest import PATIENCE, ROOT

import check_docs

COLAB = 'https://colab.research.google.com/'
FILES = 'https://github.com/cesm-nb/cesm_nb/blob/main'
SITE = 'https://cesm-nb.github.io/cesm_nb'
NOT_SHOWN = ' is neither the label of something shown on this page nor in references.bib'
NO_ALT = 'fig-b has no fig-alt of its own: describe what it shows'
CURVE = '#| label: fig-one\n#| fig-cap: "Loss, n = 3."\n#| fig-alt: "A falling line."\nplot()'
IMAGE = new_output('display_data',
                   data={'image/png': 'iVBORw0KGgo=', 'text/plain': '<Figure size 640x480>'})
TABLE = new_output('display_data', data={'text/html': '<table></table>'})


def badge(name):
    "The cell with the Colab badge."
    file = f'{COLAB}github/cesm-nb/cesm_nb/blob/main/nbs/{name}'
    return text(f'[![Open in Colab]({COLAB}assets/colab-badge.svg)]({file})')


def link(target): return text(f'[x]({target})')


def prints(output, name='stdout'):
    "A cell with the stored output `output`."
    return code('work()', outputs=[new_output('stream', name=name, text=output)])


def shows(**data):
    "A cell with displayed output of these kinds."
    data = {f'text/{k}': v for k, v in data.items()}
    return code('show()', outputs=[new_output('display_data', data=data)])


def toy(root, *cells, badges=(badge('index.ipynb'), badge('00_data.ipynb')), more=text('End.'),
        readme=''):
    "Write a small site: an index with `more` as cell 4, and a chapter with `cells` from cell 6 on."
    see = text('See [data](00_data.ipynb#first-group) and [@khaled2022].')
    figure = text('As @fig-one shows.'), code(CURVE, outputs=[IMAGE])
    pages = {
        'index.ipynb': [text('# toy'), badges[0], see, more],
        '00_data.ipynb': [text('# data'), badges[1], text('## First group {.x}'), *figure, *cells]}
    (root/'nbs').mkdir()
    for name, content in pages.items():
        nbformat.write(new_notebook(cells=content), root/'nbs'/name)
    (root/'README.md').write_text(
        f'# toy\n\n[index](nbs/index.ipynb)\n\n## To use 1.0\n\n[own](#to-use-10) {readme}\n')
    for name in ('settings.ini', 'nbs/references.bib'): shutil.copy(ROOT/name, root/name)
    return root


@pytest.fixture
def check(capsys):
    "Exit code and lines of the check."
    return lambda root: (check_docs.main(root), capsys.readouterr().out.splitlines())


HARMLESS = {
    'at signs': text('Write a@b.org, `@property`, \\@nobody and $@x$.'),
    'formula with brackets': text('$f[x](y)$ and\n\n$$\na[b](c)\n$$'),
    'code block': text('```python\n@nobody\n[x](none.ipynb)\n```'),
    'headings of one name': text('## Same\n\n## Same\n\n[second](#same-1)'),
    'heading with code': text('## `a.b_c`: *d*!\n\n[code](#a.b_c-d)'),
    'heading with its own anchor': text('## Long words {#short}\n\n[there](#short)'),
    'anchor in HTML': text('<a id="here"></a> [there](#here)'),
    'links to outside': text('[x](https://example.org/none.ipynb#none), [mail](mailto:a@b.org)'),
    'own host': text(f'[x]({SITE}/data.html#first-group), [y]({SITE}), [z]({SITE}/index.html)'),
    'own repository': text(f'[x]({FILES}/settings.ini#L3), [y]({FILES}/README.md#to-use-10)'),
    'table with caption': text('| a |\n|---|\n| 1 |\n\n: Two. {#tbl-two}\n\n'
                               'See @tbl-two and @Tbl-two.'),
    'table in an output': code('#| label: tbl-one\nshow()', outputs=[TABLE]),
    'link in an output': shows(markdown='[x](index.ipynb)'),
    'shares and rates': prints('100% of 3 breasts, 5 items in a unit, loss 0.5 | 95%'),
    'relative paths': prints('runs/tmp/a data/work/b https://example.org/home/x ~/work/y '
                             '/path/to/CDD-CESM'),
    'figure without a label': code('plot()', outputs=[IMAGE]),
    'figure that is not stored': code('#| label: fig-b\nplot()')}
CELL = 'nbs/00_data.ipynb cell 6: '
NOTEBOOK = f'{COLAB}github/cesm-nb/cesm_nb/blob/main/nbs/x.ipynb'
NO_CAPTION = '#| label: fig-b\n#| fig-alt: ""\nplot()'
CAPTION = '#| label: fig-b\n#| fig-cap: "B."\nplot()'
CAPTION_TWICE = '#| label: fig-b\n#| fig-cap: "B."\n#| fig-alt: "B."\nplot()'
ERROR = new_output('error', ename='E', evalue='no', traceback=[])
FAULTS = { # planted fault -> the cell, and the line to be printed
    'link to no page': (link('09_x.ipynb'), 'link to 09_x.ipynb: 09_x.ipynb does not exist'),
    'link to no anchor': (
        link('index.ipynb#none'), 'link to index.ipynb#none: index.ipynb has no anchor none'),
    'link to a title': (
        link('index.ipynb#toy'), 'link to index.ipynb#toy: index.ipynb has no anchor toy'),
    'link to no own anchor': (link('#none'), 'link to #none: 00_data.ipynb has no anchor none'),
    'link to no image': (
        text('![x](images/x.png)'), 'link to images/x.png: images/x.png does not exist'),
    'link to no page of the host': (
        link(f'{SITE}/x.html'), f'link to {SITE}/x.html: x.html does not exist'),
    'link to no anchor of the host': (
        link(f'{SITE}/data.html#x'), f'link to {SITE}/data.html#x: 00_data.ipynb has no anchor x'),
    'link to no file': (
        link(f'{FILES}/none.md'), f'link to {FILES}/none.md: none.md does not exist'),
    'link to no notebook in Colab': (
        link(NOTEBOOK), f'link to {NOTEBOOK}: nbs/x.ipynb does not exist'),
    'link out of the site': (
        link('../README.md'),
        'link to ../README.md: ../README.md is not on the site: give its address on GitHub'),
    'link in HTML': (text('<a href="x.html">x</a>'), 'link to x.html: x.html does not exist'),
    'link in Markdown output': (
        shows(markdown='[x](x.ipynb)'), 'link to x.ipynb: x.ipynb does not exist'),
    'link in HTML output': (
        shows(html='<a href="x.html">x</a>'), 'link to x.html: x.html does not exist'),
    'reference to nothing': (text('See @tbl-no.'), '@tbl-no' + NOT_SHOWN),
    'unknown citation': (
        text('Shown [see @khaled2022; @nobody2020, p. 3].'), '@nobody2020' + NOT_SHOWN),
    'label set twice': (code(CURVE, outputs=[IMAGE]), 'label fig-one is set before on this page'),
    'label set twice in text': (
        text('## A {#a}\n\n## B {#a}'), 'label a is set before on this page'),
    'no alt text': (code(CAPTION, outputs=[IMAGE]), NO_ALT),
    'empty alt text': (code(NO_CAPTION, outputs=[IMAGE]), NO_ALT),
    'caption as alt text': (code(CAPTION_TWICE, outputs=[IMAGE]), NO_ALT),
    'stderr': (prints('UserWarning: no', 'stderr'), 'stores stderr'),
    'error': (code('1/0', outputs=[ERROR]), 'stores stderr'),
    'bar': (prints('100%|██████████| 9/9'), 'stores a progress bar'),
    'bar in HTML': (shows(html='<pre>9 of 9, 3.51it/s</pre>'), 'stores a progress bar'),
    'slow bar': (shows(plain='1/? [00:02, 2.1s/it]'), 'stores a progress bar')}
for top in ('tmp', 'work', 'home', 'root', 'Users'):
    FAULTS[f'path in {top}'] = (
        prints(f'saved in /{top}/a/b.pt.'), f'stores /{top}/a/b.pt., a path of one machine')


def run(command, folder, stdin=None):
    "Exit code and output of a tool."
    done = subprocess.run([sys.executable, ROOT/'tools'/command], cwd=folder, input=stdin,
                          capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout


def test_repository_passes(tmp_path):
    status, out = run('check_docs.py', tmp_path)
    assert status == 0, out
    assert re.fullmatch(r'docs ok: .*\n', out)
    assert 0 not in map(int, re.findall(r'\d+', out)), 'a kind of content was not checked at all'


def test_toy_passes(tmp_path, check):
    line = 'docs ok: 2 notebooks, 7 links, 1 labels, 2 references, 1 figures, 1 outputs'
    assert check(toy(tmp_path)) == (0, [line])


def test_harmless_cells_pass(tmp_path, check):
    status, lines = check(toy(tmp_path, *HARMLESS.values()))
    assert status == 0, lines


@pytest.mark.parametrize('name', FAULTS)
def test_planted_fault_is_found(name, tmp_path, check):
    cell, line = FAULTS[name]
    assert check(toy(tmp_path, cell)) == (1, [CELL + line])


def test_reference_to_missing_figure_is_found(tmp_path, check):
    cells = text('See @fig-b.'), HARMLESS['figure that is not stored']
    lines = [CELL + '@fig-b' + NOT_SHOWN, 'nbs/index.ipynb cell 4: @fig-one' + NOT_SHOWN]
    assert check(toy(tmp_path, *cells, more=text('See @fig-one.'))) == (1, lines)


def test_missing_badge_and_badge_of_another_page_are_found(tmp_path, check):
    status, lines = check(toy(tmp_path, badges=(text('none'), badge('index.ipynb'))))
    assert (status, len(lines)) == (1, 2)
    wrong = r'leads to .*/nbs/index\.ipynb, not to .*/nbs/00_data\.ipynb$'
    assert re.match(r'nbs/00_data\.ipynb cell 2: .* ' + wrong, lines[0])
    assert lines[1].startswith('nbs/index.ipynb cell 1: no Colab badge')


@pytest.mark.parametrize('url', ['none.md', 'nbs/x.ipynb', '#none', 'nbs/00_data.ipynb#none'])
def test_bad_link_in_the_readme_is_found(url, tmp_path, check):
    status, lines = check(toy(tmp_path, readme=f'[x]({url})'))
    assert (status, len(lines)) == (1, 1) and lines[0].startswith(f'README.md: link to {url}: ')


def test_site_without_notebooks_is_found(tmp_path, check):
    for path in (toy(tmp_path)/'nbs').rglob('*.ipynb'): path.unlink()
    status, lines = check(tmp_path)
    assert status == 1 and lines[-1] == f'{tmp_path}: no notebooks'


def test_config_is_one_file():
    link = ROOT/'nbs/_quarto.yml'
    assert os.path.islink(link) and os.readlink(link) == '../_quarto.yml'


@pytest.mark.parametrize('folder', ['nbs', '_proc'])
def test_filter_processes_notebooks_that_nbdev_skipped(folder, tmp_path):
    (tmp_path/folder).mkdir()
    exported = code('#| export\ndef double(x): return 2*x')
    cells = [text('# data\n\n> Doubles.'), exported, code('#| hide\n1/0')]
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3'}}
    before = nbformat.writes(new_notebook(cells=cells, metadata=kernel))
    status, after = run('quarto_filter.py', tmp_path/folder, before)
    words = '00 data: ', 'show_doc(double)', 'output-file', '#| export', '1/0'
    present = [w in after for w in words]
    if folder == '_proc': assert status == 0 and json.loads(after) == json.loads(before)
    else: assert status == 0 and present == [True, True, False, False, False]


PRIVATE = re.compile( # right column of the glossary
    r"\b(wom[ae]n|she|hers?|teach(er|ers|es)?|taught|familiar|unseen|mates?|cooled|never seen|"
    r"looks? at|looked at|doubts?|ask(s|ed)?|tells?|told|says?|said|wanted)\b", re.I)
ALLOWED = ( # names in files, quotations and plain uses
    'women (patients)', 'the paper does not say')


def strip_code(prose): return re.sub(r'`[^`]*`|```.*?```|https?://\S+', ' ', prose, flags=re.S)


def private_words(prose):
    for phrase in ALLOWED: prose = prose.replace(phrase, '')
    return [m[0] for m in PRIVATE.finditer(strip_code(prose))]


def package_prose(path):
    "Comments and docstrings of a module."
    source = path.read_text()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    yield from (ast.get_docstring(n) or '' for n in ast.walk(tree) if isinstance(n, documented))
    yield from (t.string for t in tokenize.generate_tokens(io.StringIO(source).readline)
                if t.type == tokenize.COMMENT)


FOLDERS = sorted({p.parent for p in (ROOT/'cesm_nb').rglob('*.py')})
assert len(FOLDERS) > 10 # else the test below passes on nothing


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_package_uses_the_words_of_the_field(folder):
    found = [(p.name, prose[:90]) for p in sorted(folder.glob('[!_]*.py'))
             for prose in package_prose(p) if private_words(prose)]
    assert found == []


def test_pages_use_the_words_of_the_field():
    pages = [(p.name, c.source) for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
             for c in nbformat.read(p, 4).cells if c.cell_type == 'markdown']
    pages += [(f, (ROOT/f).read_text())
              for f in ('README.md', 'CONTRIBUTING.md', 'results/README.md', 'data/README.md')]
    found = [(name, words) for name, prose in pages if (words := private_words(prose))]
    assert found == [] and len(pages) > 500
    sentence = 'Each woman has been seen; the model tells her side.'
    assert private_words(sentence) == ['woman', 'tells', 'her']


WORDS = re.compile(r'wom[ae]n|she|hers?|teach(er|ers|es)?|taught|familiar|unseen|mates?|cooled|'
                   r'look(s|ed)?|doubts?|ask(s|ed)?|tells?|told|says?|said|wanted|alike|'
                   r'judge[ds]?|answers?') # right column of the glossary
KEPT = { # keys of files and settings that users have, and the names that read them
    'taught': 'state dict of a linear probe',
    'region_teacher': 'setting of a linear probe',
    'women': 'training.json; coverage.csv of simulated intervals; runs.csv of a grid',
    'n_test_women': 'training.json', 'n_val_women': 'training.json',
    'se_women': 'scores.csv of a grid', 'women_only': 'coverage.csv',
    'doubts': 'predictions.csv', 'alike': 'JSON of a prediction'}


def private_names(source):
    "Names in code, and strings of one name, that hold a word of the glossary's right column."
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type not in (tokenize.NAME, tokenize.STRING): continue
        name = t.string.strip('\'"')
        if not name.isidentifier() or name in KEPT: continue
        parts = re.split(r'_+|(?<=[a-z])(?=[A-Z])', name)
        if any(WORDS.fullmatch(p.lower()) for p in parts): yield name


def test_names_use_the_words_of_the_field():
    files = [p for k in ('cesm_nb', 'tests', 'tools') for p in sorted((ROOT/k).rglob('*.py'))
             if p.name not in ('_modidx.py', 'test_docs.py')] # this one quotes them
    assert len(files) > 90
    found = {(p.name, n) for p in files for n in private_names(p.read_text())}
    assert found == set()
    planted = "def ask_model(prob, women): return AnswerSheet['told'], looks_like(prob)"
    assert [*private_names(planted)] == ['ask_model', 'AnswerSheet', 'told', 'looks_like']


def test_kept_names_are_used():
    source = ' '.join(p.read_text() for p in (ROOT/'cesm_nb').rglob('*.py'))
    assert [k for k in KEPT if not re.search(rf'\b{k}\b', source)] == []
