"The notebook for Colab: from its form to a report, and one sentence where it cannot."
import json

import nbformat
import papermill as pm
import pytest
from papermill.exceptions import PapermillExecutionError

from conftest import ROOT

QUICKSTART = ROOT/'nbs'/'quickstart.ipynb'


def execute(folder, **form):
    "The executed copy, with the form filled in."
    asked = dict(progress_bar=False, kernel_name='python3', cwd=folder)
    pm.execute_notebook(str(QUICKSTART), str(folder/'executed.ipynb'), form, **asked)
    return nbformat.read(folder/'executed.ipynb', 4)


def test_from_form_to_report(tmp_path):
    notebook = execute(tmp_path, run_dir=str(tmp_path/'run'), epochs=1, image_size=32, phantom_patients=24)
    printed = ''.join(o.get('text', '') for c in notebook.cells for o in c.get('outputs', []))
    assert 'PHANTOM: made-up images' in printed
    shown = [o.data for o in notebook.cells[11].outputs if 'data' in o]
    assert 'AUC-ROC' in shown[0]['text/html'] and '<iframe srcdoc=' in shown[1]['text/html'] and 'PHANTOM' in shown[1]['text/html']
    assert json.loads((tmp_path/'run'/'metrics.json').read_text())['phantom'] is True


@pytest.mark.parametrize('form, says', [
    (dict(install_from='/no/such/copy'), '/no/such/copy could not be installed'),
    (dict(data_root='/no/such/data'), "data_root '/no/such/data' is no folder: leave it empty for the phantom")])
def test_stops_with_a_sentence(tmp_path, form, says):
    with pytest.raises(PapermillExecutionError) as stopped: execute(tmp_path, run_dir=str(tmp_path/'run'), **form)
    assert stopped.value.ename == 'SystemExit' and says in stopped.value.evalue
    assert not (tmp_path/'run').exists()
