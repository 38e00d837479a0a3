"Metadata for sharing: codemeta, Croissant and a crate per published grid, current and valid."
import json
import re
import shutil

import make_crates
import mlcroissant
import pytest
from huggingface_hub import ModelCard
from make_crates import CRATE, make_all
from rocrate.rocrate import ROCrate

from cesm_nb.networks.weights import list_results
from cesm_nb.cases.released import make_card
from cesm_nb.core.terms import SHEET_COLUMNS
from conftest import ROOT

GRIDS = [p.parent for p in sorted((ROOT/'results').glob('*/settings.json'))
         if 'grid' in json.loads(p.read_text())]


def test_metadata_is_current():
    made = make_all()
    stale = [str(p.relative_to(ROOT)) for p, text in made.items()
             if not p.exists() or p.read_text() != text]
    assert stale == [], 'run python tools/make_crates.py'
    assert {g/CRATE for g in GRIDS} < set(made) and len(GRIDS) >= 10


def test_a_changed_result_makes_its_crate_stale(tmp_path, monkeypatch):
    for name in ('settings.ini', 'CITATION.cff'): shutil.copy(ROOT/name, tmp_path/name)
    shutil.copytree(GRIDS[0], tmp_path/'results'/'grid')
    monkeypatch.setattr(make_crates, 'ROOT', tmp_path)
    path = tmp_path/'results'/'grid'/CRATE
    assert make_all()[path] == path.read_text()
    (tmp_path/'results'/'grid'/'scores.csv').write_text('changed')
    assert make_all()[path] != path.read_text()
    path.unlink()
    assert path in make_all()


@pytest.mark.parametrize('folder', GRIDS, ids=lambda f: f.name)
def test_crate_is_valid(folder):
    crate = ROCrate(folder)
    here = {f.name for f in folder.iterdir()} - {CRATE}
    flow, runs = crate.mainEntity, crate.root_dataset['mentions']
    local = [e for e in crate.data_entities if '://' not in e.id] # neither data nor workflow
    assert {e.id for e in local} == here and all(e['sha256'] for e in local)
    assert 'ComputationalWorkflow' in flow.type and flow['programmingLanguage']['name']
    for run in runs:
        assert run.type == 'CreateAction' and 'ComputationalWorkflow' in run['instrument'].type
        assert {e.id for e in run['result']} == here
    assert flow in [run['instrument'] for run in runs]
    stored = (folder/CRATE).read_text()
    known = {e.id for e in crate.get_entities()}
    named = set(re.findall(r'"@id": "([^"]+)"', stored))
    assert {n for n in named - known if not n.startswith('https://')} == set()


def test_croissant_is_valid_and_holds_no_row():
    made = json.loads((ROOT/'data'/'croissant.json').read_text())
    sheet = mlcroissant.Dataset(jsonld=made).metadata.record_sets[0]
    assert tuple(f.name for f in sheet.fields) == SHEET_COLUMNS
    assert not sheet.data and not sheet.examples
    del made['distribution'][1]
    with pytest.raises(mlcroissant.ValidationError): mlcroissant.Dataset(jsonld=made)


def test_codemeta_names_the_release():
    import cesm_nb
    made = json.loads((ROOT/'codemeta.json').read_text())
    assert (made['name'], made['version']) == ('cesm_nb', cesm_nb.__version__)
    assert made['license'].endswith('/Apache-2.0')


def test_released_card_is_made_from_stored_scores():
    "Its `model-index` is what the hub shows: none of its numbers is typed."
    folder = ROOT/'cesm_nb'/'released'
    made, found = (json.loads((folder/n).read_text()) for n in ('config.json', 'training.json'))
    facts = made['facts']
    config = dict(settings=facts['recipe']) | {
        k: (facts | made)[k] for k in ('commit', 'data_fingerprint', 'weights_source')}
    assert (folder/'README.md').read_text() == make_card(config, found)
    shown = {r.metric_type: r for r in ModelCard.load(folder/'README.md').data.eval_results}
    value, low, high = (round(v, 4) for v in found['certainty']['scores']['auc'])
    assert shown['roc_auc'].metric_value == value
    assert shown['roc_auc'].metric_args == dict(low=low, high=high)


def test_scores_that_are_not_defined_are_left_out_of_a_card():
    scores = dict(auc=[None, None, None], accuracy=[.5, None, None])
    listed = list_results(scores, 'test', 'x', True)
    assert [(r.metric_value, r.metric_args) for r in listed] == [(.5, None)]
