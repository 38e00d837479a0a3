"The notebook for Colab: from its form to a report, or one sentence on failure."
import json
import os
import re

import nbformat
import papermill as pm
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from papermill.exceptions import PapermillExecutionError

from conftest import ROOT

QUICKSTART = ROOT/'nbs'/'quickstart.ipynb'


def execute(folder, **form):
    "Return the executed copy, with the form filled in."
    options = dict(progress_bar=False, kernel_name='python3', cwd=folder)
    pm.execute_notebook(str(QUICKSTART), str(folder/'executed.ipynb'), form, **options)
    return nbformat.read(folder/'executed.ipynb', 4)


def test_from_form_to_report(tmp_path):
    smoke = yaml.safe_load((ROOT/'configs'/'smoke.yaml').read_text())
    form = {k: p['default'] for k, p in pm.inspect_notebook(str(QUICKSTART)).items()}
    for k in ('epochs', 'image_size', 'phantom_patients'): assert int(form[k]) == smoke[k], k
    notebook = execute(tmp_path, run_dir=str(tmp_path/'run'), epochs=1, image_size=32,
                       phantom_patients=24)
    used = json.loads((tmp_path/'run'/'config.json').read_text())['settings']
    assert {k: used[k] for k in smoke if k not in {*form}} == {
        k: v for k, v in smoke.items() if k not in {*form}}
    printed = ''.join(o.get('text', '') for c in notebook.cells for o in c.get('outputs', []))
    assert 'PHANTOM: made-up images' in printed
    shown = [o.data for o in notebook.cells[11].outputs if 'data' in o]
    scores, report = shown[0]['text/markdown'], shown[1]['text/html']
    assert 'AUC-ROC' in scores and '0.9676' not in scores
    assert '<iframe srcdoc=' in report and 'PHANTOM' in report
    assert json.loads((tmp_path/'run'/'metrics.json').read_text())['phantom'] is True


@pytest.mark.parametrize('form, message', [
    (dict(install_from='/no/such/copy'), '/no/such/copy could not be installed'),
    (dict(data_root='/no/such/data'),
     "data_root '/no/such/data' is no folder: leave it empty for the phantom")])
def test_quickstart_stops_with_a_sentence(tmp_path, form, message):
    with pytest.raises(PapermillExecutionError) as stopped:
        execute(tmp_path, run_dir=str(tmp_path/'run'), **form)
    assert stopped.value.ename == 'SystemExit' and message in stopped.value.evalue
    assert not (tmp_path/'run').exists()


INSTALL = (
    r'!\[ ! -d /content/sample_data \] \|\| '
    r'pip install -q "cesm_nb\[notebooks(,dicom|,dicom,app|,released)?\] @ '
    r'git\+https://github.com/cesm-nb/cesm_nb"'
    '\n'
    r"if _exit_code: raise SystemExit\('cesm_nb could not be installed: the lines above say why'\)")


def colab_cells():
    "Name -> the cell that installs the package in Colab, of each notebook that runs anything."
    books = {p.stem: nbformat.read(p, 4).cells for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
             if p != QUICKSTART}
    return {name: next(c.source for c in cells if c.cell_type == 'code')
            for name, cells in books.items() if any(c.cell_type == 'code' for c in cells)}


def test_notebooks_install_the_same_way():
    "The cell that installs is the first of all code cells, and hides no failure."
    cells = colab_cells()
    assert len(cells) > 60
    for name, text in cells.items():
        assert re.match('#\\| hide\n' + INSTALL, text), f'{name}: {text}'
        checked = text.count('if _exit_code: raise SystemExit(')
        assert '|| true' not in text, name
        assert checked == text.count('pip install') + text.count('git clone'), name


@pytest.mark.parametrize('colab, pip, git, message', [
    (False, 1, 1, None), (True, 0, 0, None),
    (True, 1, 0, 'cesm_nb could not be installed: the lines above say why'),
    (True, 0, 1, 'its results could not be fetched: the lines above say why')])
def test_failed_install_stops_the_notebook(tmp_path, monkeypatch, capfd, colab, pip, git, message):
    "With stand-ins for pip, git and Colab's folder: one sentence, and nothing else is called."
    for folder in ('bin', *['content/sample_data']*colab, 'work/repo.ready/results',
                   'work/repo.ready/nbs'):
        (tmp_path/folder).mkdir(parents=True)
    for name, code, more in (('pip', pip, ''), ('git', git, 'cp -r repo.ready repo')):
        script = f'#!/bin/sh\ntouch {tmp_path}/{name}.called\n{more}\nexit {code}\n'
        (tmp_path/'bin'/name).write_text(script)
        (tmp_path/'bin'/name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.chdir(tmp_path/'work')
    text = colab_cells()['06_leakage_audit'].replace('/content', f'{tmp_path}/content')
    done = InteractiveShell().run_cell(text)
    stopped = done.error_in_exec
    assert str(stopped) == str(message) and (stopped is None or isinstance(stopped, SystemExit))
    assert (tmp_path/'pip.called').exists() == colab
    assert (tmp_path/'git.called').exists() == (colab and not pip)
    assert (tmp_path/'work'/'results').exists() == (colab and not pip and not git)
