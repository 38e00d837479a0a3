"The documentation site: this repository passes `tools/check_docs.py`; no planted fault does."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import PATIENCE, ROOT

sys.path.insert(0, str(ROOT/'tools'))
import check_docs  # noqa: E402

HOME = 'https://colab.research.google.com/github/cesm-nb/cesm_nb/blob/main/nbs'
FILES = 'https://github.com/cesm-nb/cesm_nb/blob/main'
IMAGE = {'output_type': 'display_data', 'metadata': {}, 'data': {'image/png': 'iVBORw0KGgo='}}
TABLE = {'output_type': 'display_data', 'metadata': {}, 'data': {'text/html': '<table></table>'}}
ERROR = {'output_type': 'error', 'ename': 'ValueError', 'evalue': 'no', 'traceback': []}
FIGURE = '#| label: fig-one\n#| fig-cap: One curve, n = 3.\nplot()'

EXPORTED = """#| export
print('noise')
def double(
    x:int, # a number
) -> int: # twice it
    "Double `x`."
    return 2*x"""


def text(source):
    "A Markdown cell."
    return dict(cell_type='markdown', metadata={}, source=source)


def code(source, *outputs):
    "A code cell."
    more = dict(outputs=list(outputs), execution_count=None)
    return dict(cell_type='code', metadata={}, source=source, **more)


def badge(name):
    "The cell with the Colab badge."
    return text(f'[![Open in Colab]({check_docs.BADGE})]({HOME}/{name})')


def front(title, **more):
    "The cell nbdev writes on top."
    meta = dict(title=title, description='A claim.', **{'output-file': f'{title}.html'}) | more
    return dict(cell_type='raw', metadata={}, source=f'---\n{yaml.dump(meta)}\n---\n\n')


def notebook(cells):
    "A notebook as JSON."
    cells = [dict(cell, id=f'cell{i}') for i, cell in enumerate(cells)]
    kernel = {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'Python 3'}}
    return json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5))


def good():
    "A small site without a fault: processed pages, notebooks and configuration."
    index = [front('index'), badge('index.ipynb'), text('See [data](00_data.ipynb#first-group).')]
    data = [front('data'), badge('00_data.ipynb'), text('## First group {.x}'),
            text('As @fig-one and [@khaled2022] show.'), code(FIGURE, IMAGE),
            text('::: {.callout-note}\nShort.\n:::')]
    pages = {'index.ipynb': index, '00_data.ipynb': data}
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    return dict(pages=pages, notebooks=list(pages), config=config, sidebar=list(pages),
                settings='', copied=True)


def write(site, tree):
    "Write `site` as nbdev would leave it, and read it back."
    proc, nbs = tree/'_proc', tree/'nbs'
    for folder in (proc, nbs, tree/'tools'):
        folder.mkdir()
    shutil.copy(ROOT/'tools/quarto_filter.py', tree/'tools')
    (tree/'settings.ini').write_text((ROOT/'settings.ini').read_text() + site['settings'])
    (tree/'_quarto.yml').write_text(yaml.dump(site['config']))
    (proc/'_quarto.yml').write_text(yaml.dump(site['config'] if site['copied'] else {}))
    (proc/'styles.css').touch()
    shutil.copy(ROOT/'nbs/references.bib', proc)
    sidebar = {'website': {'sidebar': {'contents': site['sidebar']}}}
    (proc/'nbdev.yml').write_text(yaml.dump({'website': {'title': 'cesm_nb'}}))
    (proc/'sidebar.yml').write_text(yaml.dump(sidebar))
    for name, cells in site['pages'].items():
        (proc/name).write_text(notebook(cells))
    for name in site['notebooks']:
        (nbs/name).write_text(notebook(site['pages'].get(name, [])))
    return check_docs.read_site(tree)


def add(*cells, page='00_data.ipynb'):
    "A fault that consists of further cells."
    return lambda site: site['pages'][page].extend(cells)


def replace(page, number, cell):
    "A fault that consists of another cell."
    return lambda site: site['pages'][page].__setitem__(number, cell)


def change(key, value):
    "A fault in `_quarto.yml`; no value removes the key."
    def fault(site):
        *path, last = key.split('.')
        part = site['config']
        for name in path:
            part = part[name]
        part.pop(last) if value is None else part.update({last: value})
    return fault


def change_site(**values):
    "A fault in anything else."
    return lambda site: site.update(values)


FAULTS = { # the one check that must find it -> what is planted -> how, and words of the message
    'check_config': {
        'key missing': (change('website.navbar', None), 'website.navbar: is None'),
        'key of wrong type': (change('format.html.toc', 'yes'), 'set it to a bool'),
        'render list short': (change('project.render', ['/nbs/*.ipynb']), 'lacks "/*.ipynb"'),
        'metadata files':
            (change('metadata-files', ['nbdev.yml']), 'make it nbdev.yml, sidebar.yml'),
        'output folder': (change('project.output-dir', '_site'), 'nbdev sets its own'),
        'nbdev deletes config':
            (change_site(settings='\ncustom_quarto_yml = False\n'), 'custom_quarto_yml'),
        'two configs': (change_site(copied=False), 'make it a symlink'),
    },
    'check_config_files': {
        'css absent': (change('format.html.css', 'none.css'), 'none.css is absent'),
        'filter absent':
            (change('format.html.ipynb-filters', ['tools/f.py']), 'tools/f.py is absent'),
    },
    'check_settings_agree': {
        'title differs': (change('website.title', 'other'), "is 'other'"),
    },
    'check_navigation': {
        'page not in sidebar':
            (change_site(sidebar=['index.ipynb']), '00_data.ipynb: is not listed'),
        'navbar leads nowhere':
            (change('website.navbar.left', [{'href': 'about.ipynb'}]), 'about.ipynb'),
        'menu leads nowhere': (change('website.navbar.left', [{'menu': ['x.ipynb']}]), 'x.ipynb'),
    },
    'check_pages': {
        'notebook without page': (lambda s: s['notebooks'].append('09_x.ipynb'), 'became no page'),
        'page without notebook': (lambda s: s['notebooks'].pop(), 'page without a notebook'),
        'no claim': (replace('index.ipynb', 0, front('index', description='')), 'no claim'),
        'list in title cell': (replace('index.ipynb', 0, front('index', CC='view')), '`CC` became'),
        'same HTML file': (replace('index.ipynb', 0, front('data')), 'also written by'),
    },
    'check_options': {
        'options no mapping': (add(code('#| fig-cap: a: b\n1')), 'no YAML mapping'),
        'options after code': (add(code('x = 1\n#| echo: false')), 'comes after code'),
    },
    'check_directives': {
        'directive misspelled': (add(code('#| echo: false\n#| exprot: true\n1')), 'exprot'),
        'option on two lines': (add(code('#| fig-cap: >\n#|   words: two\n1')), 'words: two'),
    },
    'check_labels': {
        'label twice': (add(code(FIGURE, IMAGE)), 'fig-one is set twice'),
        'label twice in Markdown':
            (add(text('## A {#sec-a}'), text('## B {#sec-a}')), 'sec-a is set twice'),
    },
    'check_crossrefs': {
        'reference unresolved': (add(text('See @tbl-none.')), '@tbl-none names no label'),
        'reference to other page':
            (add(text('See @fig-one.'), page='index.ipynb'), '@fig-one names no'),
        'unnumbered section':
            (add(text('## A {#sec-a}\n\nSee @sec-a.')), 'needs numbered sections'),
    },
    'check_citations': {
        'citation unknown':
            (add(text('Shown [see @khaled2022; @nobody2020, p. 3].')), '@nobody2020'),
    },
    'check_links': {
        'link to absent page': (add(text('[x](09_x.ipynb)')), '09_x.ipynb is not on the site'),
        'link to absent anchor':
            (add(text('[x](index.ipynb#none)')), '#none is not on index.ipynb'),
        'link to absent own anchor': (add(text('[x](#none)')), '#none is not on 00_data.ipynb'),
        'link to absent image':
            (add(text('![x](images/x.png)')), 'images/x.png is not on the site'),
        'link to own host':
            (add(text('[x](https://cesm-nb.github.io/cesm_nb/x.html)')), 'x.html is not'),
        'link to absent file':
            (add(text(f'[x]({FILES}/none.md)')), 'none.md is not in the repository'),
        'link outside nbs':
            (add(text('[x](../data/README.md)')), '../data/README.md is not on the site'),
        'link in HTML': (add(text('<a href="x.html">x</a>')), 'x.html is not on the site'),
    },
    'check_outputs': {
        'error stored': (add(code('1/0', ERROR)), 'stored error ValueError'),
    },
    'check_figures': {
        'figure not stored':
            (add(code('#| label: fig-b\n#| fig-cap: B.\n1', TABLE)), 'fig-b has no stored output'),
        'table not stored':
            (add(code('#| label: tbl-b\n#| tbl-cap: B.\n1', IMAGE)), 'tbl-b has no stored output'),
        'figure without caption': (add(code('#| label: fig-b\n1', IMAGE)), 'fig-b has no fig-cap'),
    },
    'check_divs': {
        'block not closed': (add(text('::: {.callout-note}\nLong.')), 'never closed'),
        'block closed twice': (add(text(':::\n\nwords')), 'closes nothing'),
    },
    'check_badges': {
        'badge missing': (lambda s: s['pages']['index.ipynb'].pop(1), 'no Colab badge'),
        'badge of another page':
            (replace('index.ipynb', 1, badge('00_data.ipynb')), 'badge leads to'),
    },
}

HARMLESS = {
    'at signs': text('Write a@b.org, `@property`, \\@nobody and $@x$.'),
    'formula with brackets': text('$f[x](y)$ and\n\n$$\na[b](c)\n$$'),
    'code block': text('```python\n@nobody\n::: {.open}\n[x](none.ipynb)\n```'),
    'blocks in blocks':
        text(':::: {.columns}\n\n::: {.column}\nleft\n:::\n\n- item\n:::\n\n## Next'),
    'headings of one name': text('## Same\n\n## Same\n\n[second](#same-1)'),
    'heading with code': text('## `a.b_c`: *d*!\n\n[code](#a.b_c-d)'),
    'anchor in HTML': text('<a id="here"></a> [there](#here)'),
    'outside links': text('[x](https://example.org/none.ipynb#none), [mail](mailto:a@b.org)'),
    'own host': text('[x](https://cesm-nb.github.io/cesm_nb/data.html#first-group)'),
    'own repository': text(f'[x]({FILES}/settings.ini#L3)'),
    'table with caption': text('| a |\n|---|\n| 1 |\n\n: Two. {#tbl-two}\n\nSee @tbl-two.'),
    'stored table': code('#| label: tbl-one\n#| tbl-cap: "One: n = 3."\ntable()', TABLE),
}
PLANTED = [(check, name) for check, faults in FAULTS.items() for name in faults]


def found_by(site):
    "Problems by check."
    return {run.__name__: list(run(site)) for run in check_docs.CHECKS if list(run(site))}


def test_good_site_has_no_problem(tmp_path):
    assert found_by(write(good(), tmp_path)) == {}


@pytest.mark.parametrize('check, name', PLANTED)
def test_planted_fault_is_reported(check, name, tmp_path):
    fault, words = FAULTS[check][name]
    site = good()
    fault(site)
    found = found_by(write(site, tmp_path))
    assert list(found) == [check]
    assert any(words in problem for problem in found[check]), found
    assert all('; ' in problem and '\n' not in problem for problem in found[check])


def test_each_check_has_a_fault():
    assert set(FAULTS) == {run.__name__ for run in check_docs.CHECKS}


@pytest.mark.parametrize('name', HARMLESS)
def test_harmless_text_is_not_reported(name, tmp_path):
    site = good()
    add(HARMLESS[name])(site)
    assert found_by(write(site, tmp_path)) == {}


def test_site_without_notebooks_is_reported(tmp_path):
    site = good() | dict(pages={}, notebooks=[], sidebar=[])
    assert 'holds no notebook' in str(found_by(write(site, tmp_path))['check_pages'])


def run_check(root, *options):
    "Run the command on a working tree."
    command = [sys.executable, ROOT/'tools/check_docs.py', '--root', root, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def times(root):
    "When nbdev last wrote into a working tree."
    paths = [root/name for name in ('_proc', 'nbs/nbdev.yml', 'nbs/sidebar.yml')]
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


@pytest.fixture(scope='module')
def repository(module_path):
    "The check on this repository, run once, with its preview."
    preview, before = module_path/'preview', times(ROOT)
    preview.mkdir()
    return run_check(ROOT, '--html', preview), preview, before


def test_repository_passes(repository):
    done, _, before = repository
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith('docs ok: ')
    assert times(ROOT) == before, 'the check wrote into the working tree'


def test_preview_has_every_page(repository):
    done, preview, _ = repository
    notebooks = [p.name for p in (ROOT/'nbs').glob('*.ipynb')]
    pages = {p.name: p.read_text() for p in preview.glob('*.html')}
    assert len(pages) == len(notebooks), done.stdout + done.stderr
    assert all(f'href="{name}"' in body for name in pages for body in pages.values())
    assert not any('<script' in body for body in pages.values())


def test_config_is_one_file():
    link = ROOT/'nbs/_quarto.yml'
    assert os.path.islink(link) and os.readlink(link) == '../_quarto.yml'
    command = ['git', 'ls-files', '-s', 'nbs/_quarto.yml']
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE).stdout
    assert tracked.startswith('120000 ') or not tracked


@pytest.fixture(scope='module')
def toy(module_path):
    "A git working tree with one exported chapter and faults that must survive nbdev."
    tree = module_path/'toy'
    tree.mkdir()
    for folder in ('nbs', 'cesm_nb'):
        (tree/folder).mkdir()
    for name in ('settings.ini', '_quarto.yml', 'nbs/styles.css', 'nbs/references.bib'):
        shutil.copy(ROOT/name, tree/name)
    shutil.copytree(ROOT/'tools', tree/'tools')
    (tree/'nbs/_quarto.yml').symlink_to('../_quarto.yml')
    (tree/'cesm_nb/__init__.py').write_text('__version__ = "0.1.0"\n')
    cells = [text('# data\n\n> Doubles.'), badge('00_data.ipynb'), code('#| default_exp data'),
             code(EXPORTED), text('[exported](#double) [absent](#triple) @fig-none'),
             code('#| hide\n1/0', ERROR)]
    (tree/'nbs/00_data.ipynb').write_text(notebook(cells))
    subprocess.run(['git', 'init', '-q'], cwd=tree, check=True, timeout=PATIENCE)
    return tree


def test_faults_survive_nbdev(toy):
    done = run_check(toy)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(';')[0] for line in lines] == [
        '00_data.ipynb: cell 5: @fig-none names no label here',
        '00_data.ipynb: cell 5: link to #triple: #triple is not on 00_data.ipynb',
        '00_data.ipynb: cell 6: stored error ValueError',
    ]
    assert times(toy) == [None] * 3


def test_cell_that_cannot_run_is_reported(toy, tmp_path):
    tree = tmp_path/'tree'
    shutil.copytree(toy, tree, symlinks=True)
    cells = [text('# data\n\n> Doubles.'), code('#| export\nimport no_such_module')]
    (tree/'nbs/00_data.ipynb').write_text(notebook(cells))
    done = run_check(tree)
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stdout
    assert 'notebook: data in cell' in done.stdout


def test_path_that_nbdev_skips_is_refused(tmp_path):
    with pytest.raises(ValueError, match='TMPDIR'):
        check_docs.build(ROOT, tmp_path/'.hidden/tree')


def test_folder_without_git_is_refused(tmp_path):
    done = run_check(tmp_path)
    assert done.returncode == 2
    assert 'no git working tree' in done.stderr and 'Traceback' not in done.stderr


def run_filter(tree, folder):
    "Feed the toy notebook through the filter as Quarto does."
    source = (tree/'nbs/00_data.ipynb').read_text()
    (tree/folder).mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT/'tools/quarto_filter.py')]
    done = subprocess.run(command, cwd=tree/folder, input=source, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return source, done.stdout


def test_filter_processes_outside_proc(toy):
    cells = json.loads(run_filter(toy, 'nbs')[1])['cells']
    sources = [''.join(cell['source']) for cell in cells]
    assert 'title: data' in sources[0] and 'output-file' not in sources[0]
    assert not any('export' in source and '#|' in source for source in sources)
    assert any('show_doc(double)' in source for source in sources)


def test_filter_passes_through_in_proc(toy, tmp_path):
    tree = tmp_path/'tree'
    shutil.copytree(toy, tree, symlinks=True)
    source, out = run_filter(tree, '_proc')
    assert out == source
