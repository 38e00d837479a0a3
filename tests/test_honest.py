"The second model in a run: resumed exactly, predicted alike by all who ask it, blind to test labels, refused where settings clash."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cesm_nb.ask import Prepared, ask, open_member
from cesm_nb.batches import Breasts, assemble, load_inputs
from cesm_nb.choose import POINTS, apply_validation
from cesm_nb.commands import cesm_train
from cesm_nb.data import PROBS, REGIONS_NAME, SHEET_NAME
from cesm_nb.evaluate import evaluate
from cesm_nb.finished import export_run, load_run, predict_run
from cesm_nb.inside import look_inside
from cesm_nb.model import load_model
from cesm_nb.phantom import make_phantom
from cesm_nb.predict import certainty_of, export_expert, open_experts
from cesm_nb.runs import Run, read_parts, seal_run
from cesm_nb.settings import make_config
from cesm_nb.tensorize import read_manifest
from cesm_nb.train import check_config, fit, predict

SMALL = dict(
    model='lesion_map', backbones='test_efficientnet', protocol='clinical', roi_source='none', align_laterality=True, image_size=32,
    epochs=3, batch_size=8, lr=1e-3, device='cpu', mixed_precision='no')
ALL = dict(
    other_breast='pair', schedule='one_cycle', keep='last', average_decay=.9, flip_test=True, backbone_lr=.3, target='ordinal',
    frozen_stages=2, pooling='top')
PROBE = dict(
    probe=True, epochs=1, keep='last', other_breast='pair', also_size=24, class_weights=False, root_features=True, probe_order=.1)


@pytest.fixture(scope='module')
def data(module_path):
    return make_phantom(module_path/'data', 16, seed=0, signal=2., size_px=96, progress=False)


@pytest.fixture(scope='module')
def small(data, module_path):
    return SMALL | dict(data_root=str(data), tensor_dir=str(module_path/'tensors'))


@pytest.fixture(scope='module')
def run(small, module_path):
    "A run with all of it."
    return fit(make_config(small | ALL | dict(run_dir=str(module_path/'run'))))


def left(run_dir):
    return {f: (run_dir/f).read_bytes() for f in ('checkpoints/best.safetensors', 'history.csv', 'predictions.csv')}


def test_cut_off_it_goes_on_to_the_same_bytes(small, run, tmp_path):
    class Cut(Exception): pass

    def cut(history, epochs): raise Cut

    cfg = make_config(small | ALL | dict(run_dir=str(tmp_path/'cut')))
    for _ in range(2):
        with pytest.raises(Cut): fit(cfg, cut) # after one epoch each
    assert len(torch.load(tmp_path/'cut'/'checkpoints'/'last'/'state.pt', weights_only=True)['history']) == 2
    fit(cfg)
    assert left(tmp_path/'cut') == left(run.run_dir)


def test_a_cycle_is_as_long_as_its_run(small, run):
    with pytest.raises(ValueError, match='other settings .*epochs=3 there, 4 asked for'):
        fit(make_config(small | ALL | dict(run_dir=str(run.run_dir), epochs=4)))


def test_the_last_epoch_is_kept_and_the_rate_falls(run):
    status = json.loads((run.run_dir/'status.json').read_text())
    assert (status['best_epoch'], status['epochs_run']) == (3, 3)
    assert run.history.lr.iloc[-1] < run.history.lr.iloc[1]


@pytest.mark.parametrize('change', [
    *({k: ALL[k]} for k in ('schedule', 'average_decay', 'flip_test', 'backbone_lr', 'target', 'frozen_stages', 'pooling')),
    dict(also_size=24), dict(stretch_greys=True), dict(train_share=.5), dict(other_breast='pair'), dict(other_breast='difference'), dict(view_fusion='max'), dict(view_fusion='attention')], ids=str)
def test_each_setting_changes_the_predictions(small, tmp_path, change, plain):
    "And nothing else: the same breasts in the same parts."
    other = fit(make_config(small | dict(run_dir=str(tmp_path), epochs=2) | change)).predictions
    pd.testing.assert_frame_equal(other.drop(columns=PROBS), plain.drop(columns=PROBS))
    assert np.abs(other[PROBS] - plain[PROBS]).to_numpy().max() > 1e-6


@pytest.fixture(scope='module')
def plain(small, module_path):
    return fit(make_config(small | dict(run_dir=str(module_path/'plain'), epochs=2))).predictions


def test_all_who_ask_get_the_same(run, tmp_path):
    "The run's table, the run read back, and chapter 07, which knows no other breast, for a woman who has none."
    written = Run.open(run.run_dir).predictions
    assert predict_run(run.run_dir, device='cpu').to_csv(index=False) == (run.run_dir/'predictions.csv').read_text()
    manifest, (net, config) = read_manifest(run.run_dir), load_run(run.run_dir)
    batch = load_inputs(config['settings']['tensor_dir'], manifest, read_parts(run.run_dir), 'median', run.run_dir)
    alone = predict(net, batch._replace(mate=None), torch.arange(len(batch.label))).softmax(1).numpy()
    none = (batch.mate < 0).numpy()
    assert none.any() and not none.all()
    np.testing.assert_allclose(written[PROBS][none], alone[none], atol=1e-6)
    assert np.abs(written[PROBS].to_numpy() - alone)[~none].max() > 1e-4
    export_run(run.run_dir, tmp_path/'m')
    assert type(load_model(tmp_path/'m')).__name__ == 'LesionMap'
    cases = [Prepared(*(t[i] for t in batch[:3]), []) for i in range(len(manifest))]
    np.testing.assert_allclose(ask(open_member(run.run_dir), cases), alone, atol=1e-6)


def test_a_probe_is_the_same_whatever_the_seed(small, tmp_path):
    "One minimum: another seed, the same predictions; another strength, others."
    probe = dict(probe=True, epochs=1, keep='last', other_breast='pair', also_size=24, class_weights=False, split_seed=0)
    a, b, c = (fit(make_config(small | probe | dict(run_dir=str(tmp_path/str(i))) | k)).predictions
               for i, k in enumerate((dict(seed=1, weight_decay=.1), dict(seed=1), dict(seed=1, probe_strength=.1))))
    pd.testing.assert_frame_equal(a, b)
    assert np.abs(a[PROBS] - c[PROBS]).to_numpy().max() > 1e-3
    assert predict_run(tmp_path/'0', device='cpu').to_csv(index=False) == (tmp_path/'0'/'predictions.csv').read_text()


def test_features_are_computed_once_and_shared(small, data, tmp_path, monkeypatch):
    "By folds, other last layers and whoever reads the run; the whole network says the same; other images have features of their own."
    probe = small | dict(probe=True, epochs=1, keep='last', other_breast='pair', also_size=24, stretch_greys=True, class_weights=False,
                         mask_missing_views=True, tensor_dir=str(tmp_path/'tensors'), n_folds=3)
    run = fit(make_config(probe | dict(run_dir=str(tmp_path/'a'))))
    kept = [*(tmp_path/'tensors').glob('seen-*.safetensors')]
    assert len(kept) == 1
    net, config = load_run(tmp_path/'a')
    batch = load_inputs(tmp_path/'tensors', read_manifest(tmp_path/'a'), read_parts(tmp_path/'a'), 'median', tmp_path/'a')
    there = batch.mate >= 0
    other = Breasts(*(t[batch.mate.clamp(min=0)] for t in batch[:5]))
    x, mate = (assemble(t.views/255, t.rows) for t in (batch, other))
    with torch.no_grad(): whole = net(x, batch.real, mate*there[:, None, None, None], other.real & there[:, None]).softmax(1)
    np.testing.assert_allclose(run.predictions[PROBS], whole.numpy(), atol=1e-6)
    assert predict_run(tmp_path/'a', device='cpu').to_csv(index=False) == (tmp_path/'a'/'predictions.csv').read_text()
    def looks(*_): raise AssertionError('it looked again')
    with monkeypatch.context() as m:
        m.setattr(type(net), 'forward_images', looks)
        for i, change in enumerate((dict(fold=1), dict(split_seed=1), dict(other_breast='none'), dict(metadata=False))):
            fit(make_config(probe | change | dict(run_dir=str(tmp_path/f'b{i}'))))
        with pytest.raises(AssertionError, match='again'): fit(make_config(probe | dict(pooling='mean', run_dir=str(tmp_path/'c'))))
    kept[0].write_bytes(kept[0].read_bytes()[:-20]) # broken: computed again, to the same
    again = fit(make_config(probe | dict(run_dir=str(tmp_path/'d')))).predictions
    pd.testing.assert_frame_equal(again, run.predictions)


def test_maps_show_where_it_looked(run):
    inside = look_inside(run.run_dir)
    assert inside.attention is None and {v for _, v in inside.maps} == {'CC', 'MLO'}
    assert all(m.isfinite().all() and m.shape[1:] == (32, 32) for m in inside.maps.values())


@pytest.mark.parametrize('learned', [ALL, PROBE, PROBE | dict(fit_on='train+val'), PROBE | dict(fit_on='train+val', region_teacher=True, image_size=128)],
                         ids=['all', 'probe', 'validation women train', 'regions teach'])
def test_nothing_of_a_test_woman_but_her_images_counts(small, data, tmp_path, plain, module_path, learned):
    "Unseen women named by a file: other labels of theirs, the same predictions."
    manifest = read_manifest(module_path/'tensors')
    women = manifest.patient_id.unique()
    part = dict(zip(women, ['train', 'train', 'val', 'test']*len(women)))
    split = manifest[['patient_id', 'side']].assign(split=manifest.patient_id.map(part))
    split.to_csv(tmp_path/'split.csv', index=False)
    test = split.patient_id[split.split == 'test'].unique()
    shutil.copytree(data, tmp_path/'data')
    sheet = tmp_path/'data'/SHEET_NAME
    table = pd.read_excel(sheet, sheet_name='all')
    column = next(c for c in table if c.startswith('Pathology'))
    hers = table.Patient_ID.isin(test)
    turn = dict(zip(['Normal', 'Benign', 'Malignant'], ['Malignant', 'Normal', 'Benign']))
    table.loc[hers, column] = table.loc[hers, column].map(turn)
    table.to_excel(sheet, sheet_name='all', index=False)
    found = [fit(make_config(small | learned | dict(
        data_root=str(d), tensor_dir=str(t), run_dir=str(tmp_path/n), splits_csv=str(tmp_path/'split.csv')))).predictions
        for d, t, n in ((data, tmp_path/'taught' if 'region_teacher' in learned else module_path/'tensors', 'a'), (tmp_path/'data', tmp_path/'tensors', 'b'))]
    changed = found[0].label != found[1].label
    assert changed.any() and (found[0].split[changed] == 'test').all()
    pd.testing.assert_frame_equal(found[0][PROBS], found[1][PROBS])


TAUGHT = PROBE | dict(region_teacher=True, image_size=128, stretch_greys=True)


def move_regions(data, out, women):
    "A copy of a data set in which regions of some women are smaller and elsewhere."
    shutil.copytree(data, out)
    path, column = out/REGIONS_NAME, 'region_shape_attributes'
    table = pd.read_csv(path)
    hers = table['#filename'].str.extract(r'P(\d+)_')[0].astype(int).isin(women)
    shift = lambda v: [x//3 + 2 for x in v] if isinstance(v, list) else v//3 + 2 if isinstance(v, int) else v
    turn = lambda text: json.dumps({k: shift(v) for k, v in json.loads(text).items()})
    assert hers.any() and not hers.all()
    table.loc[hers, column] = table.loc[hers, column].map(turn)
    table.to_csv(path, index=False)


@pytest.fixture(scope='module')
def taught(small, module_path):
    "A run that regions taught where to look."
    return fit(make_config(small | TAUGHT | dict(tensor_dir=str(module_path/'taught tensors'), run_dir=str(module_path/'taught'), n_folds=3)))


def test_regions_of_women_who_train_teach_and_no_others(small, data, taught, module_path, tmp_path):
    "Regions of test and validation women are put elsewhere: nothing changes. Those of training women are: predictions change."
    parts, found = read_parts(taught.run_dir), []
    for i, who in enumerate((['test', 'val'], ['train'])):
        move_regions(data, tmp_path/f'data{i}', parts.patient_id[parts.split.isin(who)].unique())
        cfg = small | TAUGHT | dict(data_root=str(tmp_path/f'data{i}'), tensor_dir=str(tmp_path/f't{i}'), run_dir=str(tmp_path/f'r{i}'), n_folds=3)
        found.append(fit(make_config(cfg)).predictions)
    pd.testing.assert_frame_equal(found[0], taught.predictions)
    assert np.abs(found[1][PROBS] - taught.predictions[PROBS]).to_numpy().max() > 1e-4


def test_a_taught_model_needs_nothing_but_pixels_later(taught, small, module_path, tmp_path):
    "The run read back, the network itself, chapter 07 and an export answer alike; what was seen is kept once."
    assert predict_run(taught.run_dir, device='cpu').to_csv(index=False) == (taught.run_dir/'predictions.csv').read_text()
    net, config = load_run(taught.run_dir)
    assert net.taught.weight.any()
    batch = load_inputs(config['settings']['tensor_dir'], read_manifest(taught.run_dir), read_parts(taught.run_dir), 'median', taught.run_dir)
    there = batch.mate >= 0
    other = Breasts(*(t[batch.mate.clamp(min=0)] for t in batch[:5]))
    x, mate = (assemble(t.views/255, t.rows) for t in (batch, other))
    with torch.no_grad():
        whole = net(x, batch.real, mate*there[:, None, None, None], other.real & there[:, None]).softmax(1)
        alone = net(x, batch.real).softmax(1).numpy()
    np.testing.assert_allclose(taught.predictions[PROBS], whole.numpy(), atol=1e-5)
    cases = [Prepared(*(t[i] for t in batch[:3]), []) for i in range(len(batch.label))]
    np.testing.assert_allclose(ask(open_member(taught.run_dir), cases), alone, atol=1e-6)
    export_run(taught.run_dir, tmp_path/'m')
    with torch.no_grad(): np.testing.assert_allclose(load_model(tmp_path/'m')(x, batch.real).softmax(1), alone, atol=1e-6)
    assert len([*(module_path/'taught tensors').glob('seen-*')]) == 1
    maps = look_inside(taught.run_dir).maps
    assert all(m.isfinite().all() for m in maps.values())


def test_no_regions_no_teacher(small, data, tmp_path, plain):
    "Tensors that keep none are those of other settings; data and training women that have none are refused."
    with pytest.raises(ValueError, match='region_teacher=None there, True asked for'):
        fit(make_config(small | TAUGHT | dict(image_size=32, run_dir=str(tmp_path/'a'))))
    shutil.copytree(data, tmp_path/'bare')
    for f in tmp_path.glob('bare/*egment*'): f.unlink()
    with pytest.raises(ValueError, match='has no region file, which region_teacher=True needs: add it or leave region_teacher=True out'):
        fit(make_config(small | TAUGHT | dict(data_root=str(tmp_path/'bare'), tensor_dir=str(tmp_path/'t'), run_dir=str(tmp_path/'b'))))
    with pytest.raises(ValueError, match='no region of a woman who trains fills 0.3 of a cell: .* larger images'):
        fit(make_config(small | TAUGHT | dict(image_size=32, tensor_dir=str(tmp_path/'t32'), run_dir=str(tmp_path/'c'))))


@pytest.fixture(scope='module')
def whole(small, module_path):
    "A run whose validation women train, and the same run without them."
    both = [fit(make_config(small | PROBE | dict(n_folds=3, split_seed=0, fit_on=k, run_dir=str(module_path/k)))) for k in ('train+val', 'train')]
    return [Run.open(r.run_dir) for r in both]


def test_who_trains_does_not_validate(whole):
    "The same women test; nobody is left to validate, in no file; whoever trains changes the model."
    more, usual = whole
    assert set(more.predictions.split) == {'train', 'test'} == set(read_parts(more.run_dir).split)
    tests = [r.predictions[r.predictions.split == 'test'] for r in whole]
    pd.testing.assert_frame_equal(*(t.drop(columns=PROBS) for t in tests))
    assert np.abs(tests[0][PROBS] - tests[1][PROBS]).to_numpy().max() > 1e-3
    assert more.history.filter(like='val_').isna().all(axis=None) and usual.history.filter(like='val_').notna().all(axis=None)
    assert predict_run(more.run_dir, device='cpu').to_csv(index=False) == (more.run_dir/'predictions.csv').read_text()


def test_nothing_is_chosen_by_women_who_train(whole, tmp_path):
    "No temperature, no threshold, no set of classes: each says that there is none."
    more = whole[0]
    chosen = apply_validation(more.predictions)[1]
    assert chosen['n_val'] == 0 and not chosen['scaled'] and not np.isfinite([chosen[k] for k in POINTS]).any()
    evaluate(more.run_dir, tmp_path, n_draws=20)
    text = (tmp_path/'report.html').read_text()
    assert 'there is no validation breast to fit it on' in text
    expert, = open_experts([more.run_dir])
    assert expert.training is None and certainty_of([expert]) == {}
    with pytest.raises(ValueError, match="all but the test breasts trained: .* fit_on='train'"): export_expert(more.run_dir, tmp_path/'case')


def test_a_history_without_validation_is_read_only_where_nobody_validates(whole, tmp_path):
    shutil.copytree(whole[1].run_dir, tmp_path/'run')
    path = tmp_path/'run'/'history.csv'
    table = pd.read_csv(path)
    table.assign(**dict.fromkeys((k for k in table if k.startswith('val_')), np.nan)).to_csv(path, index=False)
    seal_run(tmp_path/'run')
    with pytest.raises(ValueError, match='has no val_loss, though breasts validate'): Run.open(tmp_path/'run')


def test_a_file_of_settings_and_options_beside_it(small, tmp_path):
    import yaml
    (tmp_path/'mine.yaml').write_text(yaml.safe_dump(small | dict(epochs=9)))
    cesm_train(['-f', str(tmp_path/'mine.yaml'), '--epochs', '1', '--run-dir', str(tmp_path/'run')])
    assert len(Run.open(tmp_path/'run').history) == 1
    (tmp_path/'bad.yaml').write_text('epocs: 3')
    with pytest.raises(SystemExit, match='bad.yaml: .*did you mean epochs'): cesm_train(['-f', str(tmp_path/'bad.yaml')])


def test_a_run_of_before_is_read(small, tmp_path):
    "Without the settings that came later, in the folder of a four-stream run."
    old = {k: v for k, v in small.items() if k != 'model'}
    cfg = make_config(old | dict(run_dir=str(tmp_path), epochs=1))
    before = fit(cfg).predictions
    config = json.loads((tmp_path/'config.json').read_text())
    later = ('model', 'pooling', 'pool_share', 'view_fusion', 'other_breast', 'frozen_stages', 'flip_test', 'backbone_lr', 'schedule',
             'keep', 'average_decay', 'target', 'also_size', 'probe', 'probe_strength', 'stretch_greys', 'train_share',
             'root_features', 'probe_order', 'region_teacher', 'fit_on')
    for k in later: config['settings'].pop(k)
    (tmp_path/'config.json').write_text(json.dumps(config))
    seal_run(tmp_path)
    pd.testing.assert_frame_equal(predict_run(tmp_path, device='cpu'), before)
    assert len(fit(make_config(vars(cfg) | dict(epochs=2))).history) == 2 # it goes on


@pytest.mark.parametrize('change, says', [
    (dict(other_breast='pair', align_laterality=False), 'set align_laterality=True'),
    (dict(other_breast='pair', split_unit='breast'), "use split_unit='patient'"),
    (dict(attention=False), "attention=False means nothing to model='lesion_map'"),
    (dict(probe=True), 'probe=True is fitted in one pass, set epochs=1'),
    (dict(probe=True, epochs=1, average_decay=.9), 'probe=True takes none: set it to 0'),
    (dict(train_share=0.), 'train_share=0.0 is not in'),
    (dict(root_features=True), 'root_features=True is of a fitted layer: set probe=True'),
    (dict(fit_on='train+val'), "leaves no women to choose the epoch by: set keep='last' instead of 'accuracy'"),
    (dict(fit_on='train+val', keep='last'), "leaves no women to say when the rate is cut: set schedule='one_cycle'"),
    (dict(PROBE, probe_order=0.), 'probe_order=0.0 is not in'),
    (dict(probe=True, epochs=1, pooling='top'), "pooling='top' is learned in steps"),
    (dict(also_size=32), 'also_size=32 is not below image_size=32'),
    (dict(region_teacher=True), 'region_teacher=True is of a fitted layer: set probe=True'),
    (dict(PROBE, region_teacher=True, views='CC'), "region_teacher=True learns from all views: use views='both' instead of 'CC'"),
    (dict(PROBE, region_teacher=True, model='four_stream'), "means nothing to model='four_stream'"),
    (dict(model='four_stream', flip_test=True), "use model='lesion_map'")])
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says): check_config(make_config(SMALL | change))
