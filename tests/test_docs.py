"The documentation: this repository passes `tools/check_docs.py`, and so does a toy site without a fault; each planted fault is found."
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import PATIENCE, ROOT

COLAB = 'https://colab.research.google.com/'
FILES = 'https://github.com/cesm-nb/cesm_nb/blob/main'
SITE = 'https://cesm-nb.github.io/cesm_nb'
CURVE = '#| label: fig-one\n#| fig-cap: "Loss, n = 3."\n#| fig-alt: "A falling line."\nplot()'
IMAGE = new_output('display_data', data={'image/png': 'iVBORw0KGgo=', 'text/plain': '<Figure size 640x480>'})
TABLE = new_output('display_data', data={'text/html': '<table></table>'})


def badge(name):
    "The cell with the Colab badge."
    return new_markdown_cell(f'[![Open in Colab]({COLAB}assets/colab-badge.svg)]({COLAB}github/cesm-nb/cesm_nb/blob/main/nbs/{name})')


def prints(text, name='stdout'):
    "A cell that has written `text`."
    return new_code_cell('work()', outputs=[new_output('stream', name=name, text=text)])


def shows(**data):
    "A cell that has shown text of these kinds."
    return new_code_cell('show()', outputs=[new_output('display_data', data={f'text/{k}': v for k, v in data.items()})])


def toy(root, *cells, badges=('index.ipynb', '00_data.ipynb'), readme=''):
    "Write a small site: an index, and a chapter to which `cells` are added as its cell 6 and on."
    index = [new_markdown_cell('# toy'), badge(badges[0]), new_markdown_cell('See [data](00_data.ipynb#first-group) and [@khaled2022].')]
    chapter = [new_markdown_cell('# data'), badge(badges[1]), new_markdown_cell('## First group {.x}'),
               new_markdown_cell('As @fig-one shows.'), new_code_cell(CURVE, outputs=[IMAGE]), *cells]
    (root/'nbs').mkdir()
    for name, those in (('index.ipynb', index), ('00_data.ipynb', chapter)):
        nbformat.write(new_notebook(cells=[c for c in those if c]), root/'nbs'/name)
    (root/'README.md').write_text(f'# toy\n\n[index](nbs/index.ipynb)\n\n## To use 1.0\n\n[own](#to-use-10) {readme}\n')
    for name in ('settings.ini', 'nbs/references.bib'): shutil.copy(ROOT/name, root/name)
    return root


def check(root):
    "Exit code and lines of the command."
    done = subprocess.run([sys.executable, ROOT/'tools/check_docs.py', root], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == ''
    return done.returncode, done.stdout.splitlines()


HARMLESS = {
    'at signs': new_markdown_cell('Write a@b.org, `@property`, \\@nobody and $@x$.'),
    'formula with brackets': new_markdown_cell('$f[x](y)$ and\n\n$$\na[b](c)\n$$'),
    'code block': new_markdown_cell('```python\n@nobody\n[x](none.ipynb)\n```'),
    'headings of one name': new_markdown_cell('## Same\n\n## Same\n\n[second](#same-1)'),
    'heading with code': new_markdown_cell('## `a.b_c`: *d*!\n\n[code](#a.b_c-d)'),
    'heading with its own anchor': new_markdown_cell('## Long words {#short}\n\n[there](#short)'),
    'anchor in HTML': new_markdown_cell('<a id="here"></a> [there](#here)'),
    'links to outside': new_markdown_cell('[x](https://example.org/none.ipynb#none), [mail](mailto:a@b.org)'),
    'own host': new_markdown_cell(f'[x]({SITE}/data.html#first-group), [y]({SITE}), [z]({SITE}/index.html)'),
    'own repository': new_markdown_cell(f'[x]({FILES}/settings.ini#L3), [y]({FILES}/README.md#to-use-10)'),
    'table with caption': new_markdown_cell('| a |\n|---|\n| 1 |\n\n: Two. {#tbl-two}\n\nSee @tbl-two and @Tbl-two.'),
    'table in an output': new_code_cell('#| label: tbl-one\nshow()', outputs=[TABLE]),
    'link in an output': shows(markdown='[x](index.ipynb)'),
    'shares and rates': prints('100% of 3 breasts, 5 items in a unit, loss 0.5 | 95%'),
    'relative paths': prints('runs/tmp/a data/work/b https://example.org/home/x ~/work/y /path/to/CDD-CESM'),
    'figure without a label': new_code_cell('plot()', outputs=[IMAGE]),
    'figure that is not stored': new_code_cell('#| label: fig-b\nplot()'),
}
CELL = 'nbs/00_data.ipynb cell 6: '
FAULTS = { # what is planted -> the cell, and the line that must be printed
    'link to no page': (new_markdown_cell('[x](09_x.ipynb)'), 'link to 09_x.ipynb: 09_x.ipynb does not exist'),
    'link to no anchor': (new_markdown_cell('[x](index.ipynb#none)'), 'link to index.ipynb#none: index.ipynb has no anchor none'),
    'link to a title': (new_markdown_cell('[x](index.ipynb#toy)'), 'link to index.ipynb#toy: index.ipynb has no anchor toy'),
    'link to no own anchor': (new_markdown_cell('[x](#none)'), 'link to #none: 00_data.ipynb has no anchor none'),
    'link to no image': (new_markdown_cell('![x](images/x.png)'), 'link to images/x.png: images/x.png does not exist'),
    'link to no page of the host': (new_markdown_cell(f'[x]({SITE}/x.html)'), f'link to {SITE}/x.html: x.html does not exist'),
    'link to no anchor of the host':
        (new_markdown_cell(f'[x]({SITE}/data.html#x)'), f'link to {SITE}/data.html#x: 00_data.ipynb has no anchor x'),
    'link to no file': (new_markdown_cell(f'[x]({FILES}/none.md)'), f'link to {FILES}/none.md: none.md does not exist'),
    'link out of the site':
        (new_markdown_cell('[x](../README.md)'), 'link to ../README.md: ../README.md is not on the site: give its address on GitHub'),
    'link in HTML': (new_markdown_cell('<a href="x.html">x</a>'), 'link to x.html: x.html does not exist'),
    'link in Markdown output': (shows(markdown='[x](x.ipynb)'), 'link to x.ipynb: x.ipynb does not exist'),
    'link in HTML output': (shows(html='<a href="x.html">x</a>'), 'link to x.html: x.html does not exist'),
    'reference to nothing':
        (new_markdown_cell('See @tbl-no.'), '@tbl-no is neither the label of something shown on this page nor in references.bib'),
    'reference to nothing shown': (new_code_cell('#| label: fig-b\nplot()'), None),
    'unknown citation': (new_markdown_cell('Shown [see @khaled2022; @nobody2020, p. 3].'),
                         '@nobody2020 is neither the label of something shown on this page nor in references.bib'),
    'label set twice': (new_code_cell(CURVE, outputs=[IMAGE]), 'label fig-one is set before on this page'),
    'label set twice in text': (new_markdown_cell('## A {#a}\n\n## B {#a}'), 'label a is set before on this page'),
    'no alt text': (new_code_cell('#| label: fig-b\n#| fig-cap: "B."\nplot()', outputs=[IMAGE]),
                    'fig-b has no fig-alt of its own: say what is to be seen'),
    'empty alt text': (new_code_cell('#| label: fig-b\n#| fig-alt: ""\nplot()', outputs=[IMAGE]),
                       'fig-b has no fig-alt of its own: say what is to be seen'),
    'caption as alt text': (new_code_cell('#| label: fig-b\n#| fig-cap: "B."\n#| fig-alt: "B."\nplot()', outputs=[IMAGE]),
                            'fig-b has no fig-alt of its own: say what is to be seen'),
    'stderr': (prints('UserWarning: no', 'stderr'), 'stores stderr'),
    'error': (new_code_cell('1/0', outputs=[new_output('error', ename='E', evalue='no', traceback=[])]), 'stores stderr'),
    'bar': (prints('100%|██████████| 9/9'), 'stores a progress bar'),
    'bar in HTML': (shows(html='<pre>9 of 9, 3.51it/s</pre>'), 'stores a progress bar'),
    'slow bar': (shows(plain='1/? [00:02, 2.1s/it]'), 'stores a progress bar'),
} | {f'path in {top}': (prints(f'saved in /{top}/a/b.pt.'), f'stores /{top}/a/b.pt., a path of one machine')
     for top in ('tmp', 'work', 'home', 'root', 'Users')}
del FAULTS['reference to nothing shown'] # takes two cells: see below


def test_repository_passes():
    code, lines = check(ROOT)
    assert code == 0, lines
    assert re.fullmatch('docs ok: .*', lines[-1]) and 0 not in map(int, re.findall(r'\d+', lines[-1])), 'it has looked at something of each kind'


def test_toy_passes(tmp_path):
    assert check(toy(tmp_path)) == (0, ['docs ok: 2 notebooks, 8 links, 1 labels, 2 references, 1 figures, 1 outputs'])


def test_harmless_cells_pass(tmp_path):
    code, lines = check(toy(tmp_path, *HARMLESS.values()))
    assert code == 0, lines


@pytest.mark.parametrize('name', FAULTS)
def test_planted_fault_is_found(name, tmp_path):
    cell, line = FAULTS[name]
    assert check(toy(tmp_path, cell)) == (1, [CELL + line])


def test_reference_to_a_figure_that_is_not_stored_is_found(tmp_path):
    code, lines = check(toy(tmp_path, new_markdown_cell('See @fig-b.'), HARMLESS['figure that is not stored']))
    assert (code, len(lines)) == (1, 1) and lines[0].startswith(CELL + '@fig-b is neither')


def test_reference_to_another_page_is_found(tmp_path):
    toy(tmp_path)
    index = nbformat.read(tmp_path/'nbs/index.ipynb', 4)
    nbformat.write(new_notebook(cells=[*index.cells, new_markdown_cell('See @fig-one.')]), tmp_path/'nbs/index.ipynb')
    code, lines = check(tmp_path)
    assert (code, len(lines)) == (1, 1) and lines[0].startswith('nbs/index.ipynb cell 4: @fig-one is neither')


def test_badge_of_another_page_is_found(tmp_path):
    code, lines = check(toy(tmp_path, badges=('index.ipynb', 'index.ipynb')))
    assert (code, len(lines)) == (1, 1) and re.match(r'nbs/00_data\.ipynb cell 2: .*nbs/index\.ipynb, not to .*nbs/00_data\.ipynb$', lines[0])


def test_missing_badge_is_found(tmp_path):
    toy(tmp_path)
    index = nbformat.read(tmp_path/'nbs/index.ipynb', 4)
    del index.cells[1]
    nbformat.write(index, tmp_path/'nbs/index.ipynb')
    code, lines = check(tmp_path)
    assert (code, len(lines)) == (1, 1) and lines[0].startswith('nbs/index.ipynb cell 1: no Colab badge')


@pytest.mark.parametrize('url', ['none.md', 'nbs/x.ipynb', '#none', 'nbs/00_data.ipynb#none'])
def test_bad_link_in_the_readme_is_found(url, tmp_path):
    code, lines = check(toy(tmp_path, readme=f'[x]({url})'))
    assert (code, len(lines)) == (1, 1) and lines[0].startswith(f'README.md: link to {url}: ')


def test_site_without_notebooks_is_found(tmp_path):
    toy(tmp_path, readme='')
    for path in (tmp_path/'nbs').glob('*.ipynb'): path.unlink()
    code, lines = check(tmp_path)
    assert code == 1 and lines[-1] == f'{tmp_path}: no notebooks'


def test_config_is_one_file():
    link = ROOT/'nbs/_quarto.yml'
    assert os.path.islink(link) and os.readlink(link) == '../_quarto.yml'
