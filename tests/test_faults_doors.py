"Samples of the tools that damage exports, lists and requests; each must detect a planted fault."
import json
import random

import pytest

import attack_app
import mutate_export
import mutate_lists
from cesm_nb.cases.fitted import load_fitted, unpack_bundle


def test_sample_of_mutated_lists(tmp_path, monkeypatch):
    "`python tools/dev/mutate_lists.py` runs hundreds of them."
    found = mutate_lists.mutate(45, seed=0)
    assert not found.outcome.isin(mutate_lists.BAD).any(), found
    assert {'same', 'refused'} <= {*found.outcome}
    path = tmp_path/'list.csv'
    path.write_bytes(mutate_lists.write_rows(mutate_lists.CASES, ',', random.Random(0)).encode())
    before = mutate_lists.read_list(path)
    monkeypatch.setattr(mutate_lists, 'list_cases', lambda _: before[1:] + before[1:2])
    assert mutate_lists.name_outcome(mutate_lists.read_list, path, before, '')[0] == 'WRONG'


@pytest.fixture(scope='module')
def exports(module_path): return mutate_export.make_models(module_path)


def test_sample_of_mutated_exports(exports, tmp_path):
    "`python tools/dev/mutate_export.py` runs hundreds of them."
    found = mutate_export.mutate(exports, tmp_path, 32, seed=0)
    assert not found.outcome.isin(mutate_export.BAD).any(), found
    assert {'same', 'refused'} <= {*found.outcome}
    models, case, weights = exports
    whole, other = (mutate_export.predict(models['whole', i], case, '') for i in (0, 1))
    assert mutate_export.name_outcome(models['whole', 0], case, '', other)[0] == 'WRONG'
    assert mutate_export.name_outcome(models['whole', 0], case, '', whole)[0] == 'same'


@pytest.mark.parametrize('key, value', [('channels', -1), ('views', None), ('also_size', 'x'),
                                        ('normalise_input', []), ('metadata', 1)])
def test_settings_of_fitted_models_have_types(exports, tmp_path, key, value):
    "A model without its backbone is checked like a whole one, before anything is built."
    models, _, weights = exports
    files = mutate_export.read_files(models['fitted', 0])
    config = json.loads(files['config.json']) | {key: value}
    path = mutate_export.write_model(
        files | {'config.json': json.dumps(config).encode()}, tmp_path, False)
    with pytest.raises(ValueError, match=f'config.json: {key} is .*, expected'):
        load_fitted(path, str(weights))


def test_replaced_bundle_leaves_no_file_of_the_earlier(exports, tmp_path):
    "A bundle of another model under the same name, in one process."
    models, _, _ = exports
    path = tmp_path/'model.bundle'
    for kind in ('fitted bundle', 'whole bundle'):
        path.write_bytes(models[kind, 0].read_bytes())
        folder = unpack_bundle(path)
        assert sorted(f.name for f in folder.iterdir()) == sorted(mutate_export.read_files(path))


def test_sample_of_bad_requests(tmp_path):
    "`python tools/dev/attack_app.py` sends hundreds of them."
    run, images, side = attack_app.make_model(tmp_path)
    page = attack_app.Page(run, side, tmp_path/'log')
    try:
        counts, log = attack_app.attack(page, images, 24, seed=0)
        planted = attack_app.name_outcome(page, 'good', images, random.Random(0), ['other'])
    finally: page.close()
    bad = {k: c for k, c in counts.items() if any(w.startswith(attack_app.BAD) for w in c)}
    assert (bad, log) == ({}, []) and planted.startswith('WRONG')
