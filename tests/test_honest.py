"The linear probe: run, reload and export agree; test labels have no effect; contradictions fail."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cesm_nb.cases.prepare import Prepared, predict_prepared, open_member
from cesm_nb.training.dataset import Breasts, assemble, load_inputs
from cesm_nb.stats.calibration import POINTS, apply_validation
from cesm_nb.cli import cesm_train
from cesm_nb.core.terms import PROBS, REGIONS_NAME, SHEET_NAME
from cesm_nb.evaluate import evaluate
from cesm_nb.training.inference import export_run, load_run, predict_breasts, predict_run
from cesm_nb.reporting.saliency import explain_run
from cesm_nb.model import load_model
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.cases.predict import certainty_of, export_expert, open_experts
from cesm_nb.core.runs import Run, read_parts, seal_run
from cesm_nb.core.settings import make_config
from cesm_nb.tensorize import read_manifest
from cesm_nb.train import check_config, fit

SMALL = dict(model='probe', backbones='test_efficientnet', protocol='clinical', roi_source='none',
             align_laterality=True, image_size=32, device='cpu', mixed_precision='no')
PAIR = dict(other_breast='pair', also_size=24, class_weights=False)
PROBE = PAIR | dict(root_features=True, probe_order=.1)


@pytest.fixture(scope='module')
def data(module_path):
    return make_phantom(module_path/'data', 16, seed=0, signal=2., size_px=96, progress=False)


@pytest.fixture(scope='module')
def small(data, module_path):
    return SMALL | dict(data_root=str(data), tensor_dir=str(module_path/'tensors'))


@pytest.fixture(scope='module')
def run(small, module_path):
    "A run on pairs of breasts."
    return fit(make_config(small | PROBE | dict(run_dir=str(module_path/'run'))))


@pytest.mark.parametrize('change', [
    dict(pooling='mean'), dict(also_size=24), dict(stretch_greys=True), dict(train_share=.5),
    dict(other_breast='pair'),
    dict(root_features=True), dict(probe_order=.1)], ids=str)
def test_each_setting_changes_only_predictions(small, tmp_path, change, plain):
    other = fit(make_config(small | dict(run_dir=str(tmp_path)) | change)).predictions
    pd.testing.assert_frame_equal(other.drop(columns=PROBS), plain.drop(columns=PROBS))
    assert np.abs(other[PROBS] - plain[PROBS]).to_numpy().max() > 1e-6


@pytest.fixture(scope='module')
def plain(small, module_path):
    return fit(make_config(small | dict(run_dir=str(module_path/'plain')))).predictions


def predicted(run_dir): return predict_run(run_dir, device='cpu').to_csv(index=False)


def stored(run_dir): return (run_dir/'predictions.csv').read_text()


def test_run_reload_and_export_agree(run, tmp_path):
    "For breasts without a contralateral one, the prediction for a single case agrees too."
    written = Run.open(run.run_dir).predictions
    assert predicted(run.run_dir) == stored(run.run_dir)
    manifest, (net, config) = read_manifest(run.run_dir), load_run(run.run_dir)
    batch = load_inputs(config['settings']['tensor_dir'], manifest, read_parts(run.run_dir),
                        'median', run.run_dir)
    alone = predict_breasts(net, batch._replace(contralateral=None)).softmax(1).numpy()
    none = (batch.contralateral < 0).numpy()
    assert none.any() and not none.all()
    np.testing.assert_allclose(written[PROBS][none], alone[none], atol=1e-6)
    assert np.abs(written[PROBS].to_numpy() - alone)[~none].max() > 1e-4
    export_run(run.run_dir, tmp_path/'m')
    assert type(load_model(tmp_path/'m')).__name__ == 'LinearProbe'
    cases = [Prepared(*(t[i] for t in batch[:3]), []) for i in range(len(manifest))]
    np.testing.assert_allclose(predict_prepared(open_member(run.run_dir), cases), alone, atol=1e-6)


def test_probe_fit_is_reproducible(small, tmp_path):
    "A single minimum: the same settings give the same predictions, another penalty different ones."
    probe = PAIR | dict(split_seed=0)
    changes = (dict(seed=1), dict(seed=1, keep='accuracy'), dict(seed=1, probe_strength=.1))
    a, b, c = (fit(make_config(small | probe | dict(run_dir=str(tmp_path/str(i))) | k)).predictions
               for i, k in enumerate(changes))
    pd.testing.assert_frame_equal(a, b)
    assert np.abs(a[PROBS] - c[PROBS]).to_numpy().max() > 1e-3
    assert predicted(tmp_path/'0') == stored(tmp_path/'0')


def test_features_are_cached_and_shared(small, data, tmp_path, monkeypatch):
    "Folds, last layers and readers share the cache; the full network agrees with it."
    own = dict(stretch_greys=True, mask_missing_views=True, tensor_dir=str(tmp_path/'tensors'))
    probe = small | PAIR | own | dict(n_folds=3)
    run = fit(make_config(probe | dict(run_dir=str(tmp_path/'a'))))
    kept = [*(tmp_path/'tensors').glob('features-*.safetensors')]
    assert len(kept) == 1
    net, config = load_run(tmp_path/'a')
    batch = load_inputs(tmp_path/'tensors', read_manifest(tmp_path/'a'), read_parts(tmp_path/'a'),
                        'median', tmp_path/'a')
    there = batch.contralateral >= 0
    other = Breasts(*(t[batch.contralateral.clamp(min=0)] for t in batch[:5]))
    x, contralateral = (assemble(t.views/255, t.rows) for t in (batch, other))
    with torch.no_grad():
        whole = net(x, batch.real, contralateral*there[:, None, None, None],
                    other.real & there[:, None]).softmax(1)
    np.testing.assert_allclose(run.predictions[PROBS], whole.numpy(), atol=1e-6)
    assert predicted(tmp_path/'a') == stored(tmp_path/'a')
    def compute(*_): raise AssertionError('computed again')
    with monkeypatch.context() as m:
        m.setattr(type(net), 'forward_images', compute)
        changes = (dict(fold=1), dict(split_seed=1), dict(other_breast='none'),
                   dict(metadata=False), dict(pooling='mean'), dict(also_size=0))
        for i, change in enumerate(changes):
            fit(make_config(probe | change | dict(run_dir=str(tmp_path/f'b{i}'))))
        with pytest.raises(AssertionError, match='again'):
            fit(make_config(probe | dict(stretch_greys=False, run_dir=str(tmp_path/'c'))))
    kept[0].write_bytes(kept[0].read_bytes()[:-20]) # damaged: recomputed, with the same result
    again = fit(make_config(probe | dict(run_dir=str(tmp_path/'d')))).predictions
    pd.testing.assert_frame_equal(again, run.predictions)


def test_maps_show_region_attention(run):
    inside = explain_run(run.run_dir)
    assert inside.attention is None and {v for _, v in inside.maps} == {'CC', 'MLO'}
    assert all(m.isfinite().all() and m.shape[1:] == (32, 32) for m in inside.maps.values())


@pytest.mark.parametrize('settings', [
    PROBE, PROBE | dict(fit_on='train+val'),
    PROBE | dict(fit_on='train+val', region_teacher=True, image_size=128)],
    ids=['train', 'train and val', 'region attention'])
def test_labels_of_test_patients_do_not_change_predictions(small, data, tmp_path, plain,
                                                           module_path, settings):
    "Held-out patients listed in a file: changed labels give the same predictions."
    manifest = read_manifest(module_path/'tensors')
    patients = manifest.patient_id.unique()
    part = dict(zip(patients, ['train', 'train', 'val', 'test']*len(patients)))
    split = manifest[['patient_id', 'side']].assign(split=manifest.patient_id.map(part))
    split.to_csv(tmp_path/'split.csv', index=False)
    test = split.patient_id[split.split == 'test'].unique()
    shutil.copytree(data, tmp_path/'data')
    sheet = tmp_path/'data'/SHEET_NAME
    table = pd.read_excel(sheet, sheet_name='all')
    column = next(c for c in table if c.startswith('Pathology'))
    of_test = table.Patient_ID.isin(test)
    turn = dict(zip(['Normal', 'Benign', 'Malignant'], ['Malignant', 'Normal', 'Benign']))
    table.loc[of_test, column] = table.loc[of_test, column].map(turn)
    table.to_excel(sheet, sheet_name='all', index=False)
    tensors = tmp_path/'regions' if 'region_teacher' in settings else module_path/'tensors'
    found = []
    for d, t, n in ((data, tensors, 'a'), (tmp_path/'data', tmp_path/'tensors', 'b')):
        cfg = small | settings | dict(data_root=str(d), tensor_dir=str(t), run_dir=str(tmp_path/n),
                                      splits_csv=str(tmp_path/'split.csv'))
        found.append(fit(make_config(cfg)).predictions)
    changed = found[0].label != found[1].label
    assert changed.any() and (found[0].split[changed] == 'test').all()
    pd.testing.assert_frame_equal(found[0][PROBS], found[1][PROBS])


REGIONS = PROBE | dict(region_teacher=True, image_size=128, stretch_greys=True)


def move_regions(data, out, patients):
    "Copy a data set and make the regions of some patients smaller and move them."
    shutil.copytree(data, out)
    path, column = out/REGIONS_NAME, 'region_shape_attributes'
    table = pd.read_csv(path)
    moved = table['#filename'].str.extract(r'P(\d+)_')[0].astype(int).isin(patients)
    def shift(v):
        if isinstance(v, list): return [x // 3 + 2 for x in v]
        return v // 3 + 2 if isinstance(v, int) else v
    turn = lambda text: json.dumps({k: shift(v) for k, v in json.loads(text).items()})
    assert moved.any() and not moved.all()
    table.loc[moved, column] = table.loc[moved, column].map(turn)
    table.to_csv(path, index=False)


@pytest.fixture(scope='module')
def attentive(small, module_path):
    "A run with region-supervised attention."
    return fit(make_config(small | REGIONS | dict(
        tensor_dir=str(module_path/'region tensors'), run_dir=str(module_path/'attentive'),
        n_folds=3)))


def test_only_training_regions_change_predictions(small, data, attentive, module_path, tmp_path):
    "Moved regions change predictions if they are of training patients, not of val or test."
    parts, found = read_parts(attentive.run_dir), []
    for i, moved in enumerate((['test', 'val'], ['train'])):
        move_regions(data, tmp_path/f'data{i}', parts.patient_id[parts.split.isin(moved)].unique())
        folders = dict(data_root=str(tmp_path/f'data{i}'), tensor_dir=str(tmp_path/f't{i}'),
                       run_dir=str(tmp_path/f'r{i}'))
        cfg = small | REGIONS | folders | dict(n_folds=3)
        found.append(fit(make_config(cfg)).predictions)
    pd.testing.assert_frame_equal(found[0], attentive.predictions)
    assert np.abs(found[1][PROBS] - attentive.predictions[PROBS]).to_numpy().max() > 1e-4


def test_region_attention_needs_only_pixels_at_test(attentive, small, module_path, tmp_path):
    "Reloaded run, network, case prediction and export agree; features are cached once."
    run_dir = attentive.run_dir
    assert predicted(run_dir) == stored(run_dir)
    net, config = load_run(run_dir)
    assert net.region_attention.weight.any()
    batch = load_inputs(config['settings']['tensor_dir'], read_manifest(run_dir),
                        read_parts(run_dir), 'median', run_dir)
    there = batch.contralateral >= 0
    other = Breasts(*(t[batch.contralateral.clamp(min=0)] for t in batch[:5]))
    x, contralateral = (assemble(t.views/255, t.rows) for t in (batch, other))
    with torch.no_grad():
        whole = net(x, batch.real, contralateral*there[:, None, None, None],
                    other.real & there[:, None]).softmax(1)
        alone = net(x, batch.real).softmax(1).numpy()
    np.testing.assert_allclose(attentive.predictions[PROBS], whole.numpy(), atol=1e-5)
    cases = [Prepared(*(t[i] for t in batch[:3]), []) for i in range(len(batch.label))]
    by_case = predict_prepared(open_member(run_dir), cases)
    np.testing.assert_allclose(by_case, alone, atol=1e-6)
    export_run(run_dir, tmp_path/'m')
    with torch.no_grad():
        exported = load_model(tmp_path/'m')(x, batch.real).softmax(1)
        np.testing.assert_allclose(exported, alone, atol=1e-6)
    assert len([*(module_path/'region tensors').glob('features-*')]) == 1
    maps = explain_run(run_dir).maps
    assert all(m.isfinite().all() for m in maps.values())


def test_region_attention_without_regions_is_rejected(small, data, tmp_path, plain):
    "Tensors, data or training patients without regions are rejected."
    run = lambda **k: fit(make_config(small | REGIONS | k))
    with pytest.raises(ValueError, match='region_teacher=None there, True expected'):
        run(image_size=32, run_dir=str(tmp_path/'a'))
    shutil.copytree(data, tmp_path/'bare')
    for f in tmp_path.glob('bare/*egment*'): f.unlink()
    message = ('has no region file, which region_teacher=True needs: add it or leave '
               'region_teacher=True out')
    with pytest.raises(ValueError, match=message):
        run(data_root=str(tmp_path/'bare'), tensor_dir=str(tmp_path/'t'), run_dir=str(tmp_path/'b'))
    message = 'no region of a training patient fills 0.3 of a cell: .* larger images'
    with pytest.raises(ValueError, match=message):
        run(image_size=32, tensor_dir=str(tmp_path/'t32'), run_dir=str(tmp_path/'c'))


@pytest.fixture(scope='module')
def whole(small, module_path):
    "A run trained on validation patients too, and the same run without them."
    both = small | PROBE | dict(n_folds=3, split_seed=0)
    runs = [fit(make_config(both | dict(fit_on=k, run_dir=str(module_path/k))))
            for k in ('train+val', 'train')]
    return [Run.open(r.run_dir) for r in runs]


def test_training_on_val_leaves_no_validation_patients(whole):
    "The test patients stay, no file has validation patients, and the added ones change the model."
    more, usual = whole
    assert set(more.predictions.split) == {'train', 'test'} == set(read_parts(more.run_dir).split)
    tests = [r.predictions[r.predictions.split == 'test'] for r in whole]
    pd.testing.assert_frame_equal(*(t.drop(columns=PROBS) for t in tests))
    assert np.abs(tests[0][PROBS] - tests[1][PROBS]).to_numpy().max() > 1e-3
    assert more.history.filter(like='val_').isna().all(axis=None)
    assert usual.history.filter(like='val_').notna().all(axis=None)
    assert predicted(more.run_dir) == stored(more.run_dir)


def test_nothing_is_selected_on_training_patients(whole, tmp_path):
    "No temperature, threshold or conformal set: each is reported as absent."
    more = whole[0]
    chosen = apply_validation(more.predictions)[1]
    assert chosen['n_val'] == 0 and not chosen['scaled']
    assert not np.isfinite([chosen[k] for k in POINTS]).any()
    evaluate(more.run_dir, tmp_path, n_draws=20)
    text = (tmp_path/'report.html').read_text()
    assert 'there is no validation breast to fit it on' in text
    expert, = open_experts([more.run_dir])
    assert expert.training is None and certainty_of([expert]) == {}
    with pytest.raises(ValueError, match="used for training: .* fit_on='train'"):
        export_expert(more.run_dir, tmp_path/'case')


def test_history_without_validation_needs_fit_on_val(whole, tmp_path):
    shutil.copytree(whole[1].run_dir, tmp_path/'run')
    path = tmp_path/'run'/'history.csv'
    table = pd.read_csv(path)
    empty = dict.fromkeys((k for k in table if k.startswith('val_')), np.nan)
    table.assign(**empty).to_csv(path, index=False)
    seal_run(tmp_path/'run')
    with pytest.raises(ValueError, match='has no val_loss, though breasts validate'):
        Run.open(tmp_path/'run')


def test_settings_file_and_options_beside_it(small, tmp_path):
    import yaml
    (tmp_path/'mine.yaml').write_text(yaml.safe_dump(small | dict(model='four_stream', epochs=9)))
    cesm_train(['-f', str(tmp_path/'mine.yaml'), '--epochs', '1', '--run-dir', str(tmp_path/'run')])
    assert len(Run.open(tmp_path/'run').history) == 1
    (tmp_path/'probe.yaml').write_text(yaml.safe_dump(small))
    cesm_train(['-f', str(tmp_path/'probe.yaml'), '--other-breast', 'pair', '--run-dir',
                str(tmp_path/'probe')])
    config = json.loads((tmp_path/'probe'/'config.json').read_text())
    assert config['settings']['other_breast'] == 'pair'
    (tmp_path/'bad.yaml').write_text('epocs: 3')
    with pytest.raises(SystemExit, match='bad.yaml: .*did you mean epochs'):
        cesm_train(['-f', str(tmp_path/'bad.yaml')])


def test_old_config_still_loads(small, tmp_path):
    "A run of version 0.1.0, without settings added later and with those removed since."
    cfg = make_config(small | dict(model='four_stream', run_dir=str(tmp_path), epochs=1))
    before = fit(cfg).predictions
    config = json.loads((tmp_path/'config.json').read_text())
    later = {'model', 'keep'}
    gone = dict(pool_share=.02, frozen_stages=0, flip_test=False, backbone_lr=1.,
                schedule='plateau', average_decay=0., probe=False, pooling='mean_std')
    config['settings'] = {k: v for k, v in config['settings'].items() if k not in later} | gone
    (tmp_path/'config.json').write_text(json.dumps(config))
    seal_run(tmp_path)
    pd.testing.assert_frame_equal(predict_run(tmp_path, device='cpu'), before)
    assert len(fit(make_config(vars(cfg) | dict(epochs=2))).history) == 2 # it resumes


def test_old_probe_still_loads(small, run, tmp_path):
    "A run and an export called `lesion_map` in version 0.1.0; one trained in steps is rejected."
    old = shutil.copytree(run.run_dir, tmp_path/'run')
    export_run(run.run_dir, tmp_path/'m')
    names = dict(model='lesion_map', probe=True, pool_share=.02, frozen_stages=0, flip_test=False)
    config = json.loads((old/'config.json').read_text())
    config['settings'] |= names | dict(schedule='plateau', average_decay=0., backbone_lr=1.,
                                       batch_size=8)
    (old/'config.json').write_text(json.dumps(config))
    seal_run(old)
    pd.testing.assert_frame_equal(predict_run(old, device='cpu'),
                                  predict_run(run.run_dir, device='cpu'))
    path = tmp_path/'m'/'config.json'
    made = json.loads(path.read_text())
    path.write_text(json.dumps(made | names))
    assert load_model(tmp_path/'m').settings['model'] == 'probe'
    path.write_text(json.dumps(made | names | dict(probe=False)))
    with pytest.raises(ValueError, match='trained in steps, which was removed after version 0.1.0'):
        load_model(tmp_path/'m')


@pytest.mark.parametrize('change, message', [
    (dict(other_breast='pair', align_laterality=False), 'set align_laterality=True'),
    (dict(other_breast='pair', split_unit='breast'), "use split_unit='patient'"),
    (dict(attention=False), 'attention=False does not apply to the linear probe'),
    (dict(lr=1e-3), 'lr=0.001 does not apply to the linear probe: leave it at 0.0001'),
    (dict(epochs=5), 'epochs=5: the linear probe is fitted in one pass'),
    (dict(train_share=0.), 'train_share=0.0 is not in'),
    (dict(PROBE, probe_order=0.), 'probe_order=0.0 is not in'),
    (dict(pooling='top'), "pooling='top' is not one of 'mean', 'mean_std'"),
    (dict(also_size=32), 'also_size=32 is not below image_size=32'),
    (dict(backbones='test_efficientnet,test_vit'), 'the linear probe has one backbone'),
    (dict(PROBE, region_teacher=True, views='CC'),
     "region_teacher=True needs both views: use views='both' instead of 'CC'"),
    (dict(PROBE, model='four_stream'), "only applies to the linear probe: set model='probe'"),
    (dict(model='four_stream', fit_on='train+val'),
     "fit_on='train.val' only applies to the linear probe"),
    (dict(model='lesion_map'), 'was removed after version 0.1.0'),
    (dict(flip_test=True), 'flip_test=True was removed after version 0.1.0')])
def test_contradictory_settings_are_rejected(change, message):
    with pytest.raises(ValueError, match=message): check_config(make_config(SMALL | change))
