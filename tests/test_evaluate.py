"Evaluation end to end: the command on trained runs, the page in a browser, simulations, bootstrap."
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from cesm_nb.cases.subgroups import read_own
from cesm_nb.cases.prepare import open_member
from cesm_nb.core.terms import PROBS
from cesm_nb.training.inference import open_breasts, predict_run
from cesm_nb.core.runs import Run, seal_run
from cesm_nb.cli import cesm_evaluate
from cesm_nb.evaluate import evaluate, list_figures, write_inside
from cesm_nb.reporting.saliency import explain_run
from cesm_nb.stats.calibration import apply_validation, heat, pool_runs
from cesm_nb.stats.coverage import coverage_repeated
from cesm_nb.stats.intervals import interval_table
from cesm_nb.experiments.publish import read_curves
from cesm_nb.synthetic.predictions import simulate
from cesm_nb.stats.scores import calibration_bins, debiased_ece
from cesm_nb.core.settings import make_config
from cesm_nb.reporting.tables import describe_breasts
from cesm_nb.train import fit
from conftest import PATIENCE, ROOT, call

BROWSERS = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
BROWSER = next((b for b in BROWSERS if b), None)
PROBE = '''<script>addEventListener('load', () => { const output = {
  images: [...document.images].map(i => i.naturalWidth),
  width: document.documentElement.scrollWidth,
  requests: performance.getEntriesByType('resource').map(r => r.name)
    .filter(n => !n.startsWith('data:'))}
  document.body.insertAdjacentHTML('beforeend',
    '<pre id=output>' + JSON.stringify(output) + '</pre>') })</script></body>'''


@pytest.fixture(scope='module')
def runs(phantom, module_path):
    "Two short runs on the same split, with different seeds of weights."
    out, made = module_path, []
    settings = dict(data_root=str(phantom), tensor_dir=str(out/'tensors'), protocol='clinical',
                    image_size=48, epochs=1, batch_size=8, mixed_precision='no', splits_csv='',
                    backbones='lcnet_035,mobilenetv3_small_050')
    for seed in (0, 1):
        cfg = make_config(settings | dict(run_dir=str(out/f'seed{seed}'), seed=seed))
        made.append(fit(cfg).run_dir)
        settings['splits_csv'] = str(out/'seed0'/'splits.csv')
    return made


def command(*args): return call(cesm_evaluate, *args)


def test_command_on_two_runs(runs):
    "Each run gets tables, figures and a page; both are compared, paired, on the same breasts."
    done = command(*runs, '--n-draws', 200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('*** PHANTOM') == 4 and 'note:' not in done.stdout
    for run in runs:
        assert {f.stem for f in (run/'tables').iterdir()} == {
            'table1', 'per_class', 'points', 'metrics', 'subgroups', 'pointing'}
        assert 'paper' not in pd.read_csv(run/'tables'/'table1.csv') # beside a phantom's scores
        svgs = list((run/'figures').glob('*.svg'))
        names = {f.stem for f in svgs}
        assert names == {f.stem for f in (run/'figures').glob('*.png')}
        assert names >= {'fig5_accuracy', 'reliability', 'decision', 'attention'}
        scored = pd.read_csv(run/'tables'/'subgroups.csv').accuracy.notna().sum()
        assert ('subgroups' in names) == (scored > 1) # no panel of groups that are not scored
        assert all(b'<text' not in f.read_bytes() for f in svgs) # text is outlined
        assert [f.name for f in (run/'inside').iterdir()] == ['gradcam.png']
        assert json.loads((run/'metrics.json').read_text())['chosen']['temperature'] > 0
    paired = pd.read_csv(runs[0].parent/'joint'/'tables'/'paired.csv')
    assert {'auc', 'accuracy'} <= set(paired.score)
    assert (paired.p_holm.dropna() >= paired.p.dropna()).all()
    assert paired.set_index('score').test['accuracy'] == 'Obuchowski'
    assert (paired.p.isna() == paired.test.isna()).all()
    assert paired.p.isna().any() # too few breasts of a class for AUCs


def test_selected_epoch_matches_status(phantom, runs, tmp_path):
    "Figures, metrics and curves mark the epoch of `status.json`, whatever other epochs scored."
    settings = dict(data_root=str(phantom), tensor_dir=str(runs[0].parent/'tensors'),
                    run_dir=str(tmp_path/'run'), protocol='clinical', image_size=48, epochs=3,
                    batch_size=8, mixed_precision='no', keep='last',
                    backbones='lcnet_035,mobilenetv3_small_050')
    plan = [SimpleNamespace(variant='last', cfg=make_config(settings))]
    fit(plan[0].cfg)
    history = tmp_path/'run'/'history.csv'
    best_first = pd.read_csv(history).assign(val_accuracy=[.9, .5, .5])
    best_first.to_csv(history, index=False)
    seal_run(tmp_path/'run')
    evaluate(tmp_path/'run', n_draws=20, inside=False)
    assert json.loads((tmp_path/'run'/'status.json').read_text())['best_epoch'] == 3
    assert json.loads((tmp_path/'run'/'metrics.json').read_text())['best_epochs'] == [3]
    assert 'selected epoch 3' in (tmp_path/'run'/'report.html').read_text()
    curves = read_curves(plan, dict(last=(plan[0].cfg.seed,)))
    assert curves.epoch[curves.selected].tolist() == [3]
    run = Run.open(tmp_path/'run')
    for name, draw in list_figures([run], apply_validation(pool_runs([run]))[0], []).items():
        if not name.startswith('fig'): continue
        fig, ax = plt.subplots()
        draw(ax)
        selected = [line for line in ax.lines if line.get_label() == 'selected epoch']
        assert [list(line.get_xdata()) for line in selected] == [[3]], name
        plt.close(fig)


def test_copied_results_hold_no_patient_data(runs):
    "Tables and figures for results/ identify no breast and show no small subgroup."
    evaluate(runs[0], n_draws=50)
    for f in (runs[0]/'tables').iterdir():
        assert not re.search(r'P\d+_[LR]|patient_id', f.read_text()), f
    groups = pd.read_csv(runs[0]/'tables'/'subgroups.csv')
    assert groups.loc[groups.breasts < 10, ['accuracy', 'malignant']].isna().all(axis=None)


@pytest.mark.skipif(BROWSER is None, reason='no Chromium on PATH')
def test_page_in_a_browser(runs, tmp_path):
    "Every image is embedded, the page needs no network and fits 1280 pixels."
    page = evaluate(runs[0], n_draws=50)['report'].read_text()
    image_data = r'data:image/png;base64,[^"]*' # can contain any letters
    code = re.sub(image_data, 'data:', page)
    found = re.search(r'(src|href)="(?!data:)|url\(|@import|http.*', code)
    assert 'PHANTOM' in page and not found, found
    (tmp_path/'page.html').write_text(page.replace('</body>', PROBE))
    browse = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--window-size=1280,2000']
    dom = subprocess.run([*browse, '--dump-dom', (tmp_path/'page.html').as_uri()],
                         capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    output = json.loads(re.search('<pre id="output">(.*?)</pre>', dom)[1])
    assert len(output['images']) == page.count('<img') >= 10 and min(output['images']) > 100
    assert output['requests'] == [] and output['width'] <= 1280
    shot = tmp_path/'page.png'
    subprocess.run([*browse, f'--screenshot={shot}', (tmp_path/'page.html').as_uri()],
                   capture_output=True, timeout=PATIENCE, check=True)
    import cv2
    image = cv2.imread(str(shot))
    assert image.shape[1] == 1280 and image.std() > 10 # something is drawn


def test_without_tensors_or_data(runs, tmp_path):
    "A run folder alone still gives tables and figures; a note lists what is missing."
    alone = tmp_path/'alone'
    shutil.copytree(runs[0], alone, ignore=shutil.ignore_patterns('inside', 'figures', 'tables'))
    config = json.loads((alone/'config.json').read_text())
    config['settings'] |= dict(data_root=str(tmp_path/'gone'), tensor_dir=str(tmp_path/'gone'))
    (alone/'config.json').write_text(json.dumps(config))
    seal_run(alone)
    found = evaluate(alone, n_draws=50)
    notes = ' '.join(found['notes'])
    assert 'machine and finding are left out' in notes
    assert 'maps and attention are left out' in notes
    assert 'Subgroups' in found['tables'] and 'Pointing game' not in found['tables']
    assert not (alone/'inside').exists() and found['report'].exists()


def test_renamed_run_keeps_its_maps(tmp_path):
    "Tensors and data inside a run folder move with it; if absent, the places searched are listed."
    cfg = make_config(dict(
        run_dir=str(tmp_path/'run'), phantom_patients=24, phantom_signal=2., protocol='clinical',
        image_size=32, epochs=1, batch_size=8, mixed_precision='no', backbones='lcnet_035'))
    run = fit(cfg)
    before, where = explain_run(run.run_dir), tmp_path/'renamed'
    run.run_dir.rename(where)
    after = explain_run(where)
    assert after.maps.keys() == before.maps.keys()
    assert after.masks.any() and (after.masks == before.masks).all()
    assert all(torch.equal(after.maps[k], before.maps[k]) for k in before.maps)
    member = open_member(where)
    assert read_own(member).table.equals(open_breasts(where).table)
    assert np.allclose(predict_run(where)[PROBS], run.predictions[PROBS], atol=1e-5)
    assert describe_breasts(where)[1] == [] # machine and finding, from the sheet
    shutil.rmtree(where/'tensors')
    message = (f'{where}: its tensor_dir is not found at {where}/tensors or '
               f'{tmp_path}/run/tensors: move the tensors there, or make them again')
    for load in (explain_run, open_breasts, predict_run, lambda d: read_own(open_member(d))):
        with pytest.raises(ValueError, match=re.escape(message)): load(where)
    notes = write_inside([where], tmp_path/'out', True).notes
    assert notes[0].startswith(f'maps and attention are left out: {message}')


def test_maps_fit_the_run(runs):
    "One map per stream and view, of the image's size, reproducible; regions as in the sheet."
    a, b = explain_run(runs[0]), explain_run(runs[0])
    streams = list(dict.fromkeys(s for s, _ in a.maps))
    assert len(streams) == 2 and list(a.maps) == [(s, v) for s in streams for v in ('CC', 'MLO')]
    for k, m in a.maps.items():
        assert m.shape == (len(a.cases.table), 48, 48) and m.min() >= 0
        np.testing.assert_allclose(m, b.maps[k])
    normal = (a.cases.table.label == 0).to_numpy()
    assert a.masks[~normal].any((1, 2, 3)).mean() > .8 > .2 > a.masks[normal].any((1, 2, 3)).mean()
    np.testing.assert_allclose(a.attention.sum(1), 1, rtol=1e-5)


def test_stored_coverage():
    "tools/simulate_coverage.py: intervals of accuracy and AUC cover 93 to 97 % of 500 data sets."
    found = pd.read_csv(ROOT/'results'/'coverage.csv')
    one_seed = found[(found.seeds == 1) & (found.kind == 'score')]
    single = one_seed[one_seed.score.isin(['accuracy', 'auc'])]
    patients, breasts = (single[(single.drawn == k) & (single.sets == 500)]
                         for k in ('women', 'breasts'))
    assert len(patients) == 6 and (patients.sets == 500).all()
    assert patients.coverage.between(.93, .97).all()
    too_narrow = breasts.coverage.to_numpy() # breasts of one patient treated as independent
    assert (too_narrow < patients.coverage.to_numpy()).all()


def test_stored_coverage_with_seeds():
    "Intervals over 43 to 283 patients and 3 or 5 seeds (AUCs differ by 0.02 to 0.03), also paired."
    found = pd.read_csv(ROOT/'results'/'coverage.csv')
    seeds = found[(found.seeds > 1) & (found.seed_sd > 0) & found.score.isin(['accuracy', 'auc'])]
    assert len(seeds) == 24 and set(seeds.kind) == {'score', 'difference'}
    assert (seeds.sets == 2000).all()
    assert seeds[seeds.score == 'auc'].seed_sd.between(.02, .03).all()
    assert seeds.coverage.between(.93, .97).all()
    assert seeds[seeds.patients == 283].women_only.max() < .9 # coverage if seeds are ignored


def read_retrained():
    "Return the rows of cross-validations with training, indexed by design, kind and method."
    found = pd.read_csv(ROOT/'results'/'coverage.csv')
    return found[found.part == 'retrained'].set_index(['design', 'kind', 'method'])


def test_stored_coverage_with_training():
    "Redrawn folds: corrected intervals cover 93 to 97 % of 500 data sets, plain ones fewer."
    redrawn, same = (read_retrained().loc[k] for k in (
        'trained, folds dealt anew', 'trained, same folds and other weights'))
    assert set(redrawn.patients) == {150, 260, 280}
    assert (redrawn.sets == 500).all() and (same.sets == 300).all()
    new, old = (redrawn.loc['score', m].set_index(['patients', 'score'])
                for m in ('Nadeau-Bengio', 'bootstrap'))
    one_class = new.index.get_level_values('score') == 'auc_malignant'
    assert new.coverage[~one_class].between(.93, .97).all() and one_class.sum() == 3
    assert new.coverage[one_class].between(.92, .97).all() # slightly narrow even without training
    assert old.coverage.max() < .92 and (old.sd_ratio > 1.1).all()
    wide, narrow = (redrawn.loc['difference', m] for m in ('Nadeau-Bengio', 'bootstrap'))
    assert wide.coverage.between(.94, .985).all()
    assert (narrow.coverage.to_numpy() < wide.coverage.to_numpy()).all()
    assert same.coverage.between(.91, .97).all()


def test_quoted_coverage_matches_stored_rows():
    "stats.compare, stats.coverage and results/README.md quote the stored rows."
    def read(name):
        cells = nbformat.read(ROOT/'nbs'/name, 4).cells
        return ' '.join(c.source for c in cells if c.cell_type == 'markdown').replace('\n', ' ')
    compare, coverage = map(read, ('api/stats.compare.ipynb', 'api/stats.coverage.ipynb'))
    span = lambda v, form: f'{form.format(v.min())} to {form.format(v.max())}'
    percent = lambda v: f'{span(100*v, "{:.1f}")} %'
    redrawn = read_retrained().loc['trained, folds dealt anew']
    found = redrawn.set_index(['patients', 'score'], append=True).sort_index()
    for kind in ('score', 'difference'):
        assert percent(found.loc[kind, 'Nadeau-Bengio', 260].coverage) in coverage
        assert span(found.loc[kind, 'bootstrap', 260].sd_ratio, '{:.2f}') in coverage
    for n in (150, 280):
        assert percent(found.loc['score', 'Nadeau-Bengio', n].coverage) in coverage
    same = read_retrained().loc['trained, same folds and other weights']
    for kind in ('score', 'difference'): assert percent(same.loc[kind].coverage) in coverage
    assert percent(found.loc['score', 'bootstrap', 260].coverage) in coverage
    old, new = (found.loc[('score', m, 260, 'auc')] for m in ('bootstrap', 'Nadeau-Bengio'))
    plain, corrected = 100*old.coverage, 100*new.coverage
    assert f'{plain:.1f} % of sets and the corrected one in {corrected:.1f} %' in compare
    assert f'by a factor of {old.sd_ratio:.2f}' in compare
    readme = (ROOT/'results'/'README.md').read_text()
    assert f'factor of {old.sd_ratio:.2f} in simulations' in readme


def test_coverage_with_seeds():
    "100 data sets of 150 patients, three seeds: coverage is far too low if seeds are ignored."
    found = coverage_repeated(100, n_patients=150, n_draws=100, names=('accuracy', 'auc'))
    assert found.coverage.between(.89, .99).all() and (found.women_only < .88).all(), found


def test_calibration_error_of_a_calibrated_model():
    "Labels drawn from probabilities: debiased error near 0, plain not; overconfidence is detected."
    error, plain, overconfident = [], [], []
    for seed in range(400):
        s, rng = simulate(86, seed=seed), np.random.default_rng([seed, 1])
        label = (rng.random((len(s.prob), 1)) > s.prob.cumsum(1)[:, :2]).sum(1)
        gap = (s.prob.argmax(1) == label) - s.prob.max(1)
        plain.append(np.abs(np.bincount(calibration_bins(s.prob), gap)).sum()/len(label))
        error.append(debiased_ece(label, s.prob, s.patient_id))
        overconfident.append(debiased_ece(label, heat(s.prob, .5), s.patient_id))
    means = tuple(map(np.mean, (error, plain, overconfident)))
    assert abs(means[0]) < .012 and means[1] > .05 and means[2] > .1, means


def test_folds_and_scaling_are_reported(runs, tmp_path):
    "Two runs as folds share a temperature; pooled and mean fold AUCs and the scaling are reported."
    folds, left_out = [], shutil.ignore_patterns('inside', 'figures', 'tables', 'checkpoints')
    for i, run in enumerate(runs):
        folds.append(tmp_path/f'fold{i}')
        shutil.copytree(run, folds[-1], ignore=left_out)
        config = json.loads((folds[-1]/'config.json').read_text())
        config['settings'] |= dict(seed=0, fold=i)
        (folds[-1]/'config.json').write_text(json.dumps(config))
        table = pd.read_csv(folds[-1]/'predictions.csv')
        other_half = (table.split == 'test') & (table.patient_id % 2 == i)
        table.loc[other_half, 'split'] = 'train' # each fold tests half of the patients
        table.to_csv(folds[-1]/'predictions.csv', index=False)
        table[['patient_id', 'side', 'split']].to_csv(folds[-1]/'splits.csv', index=False)
        seal_run(folds[-1])
    found = evaluate(folds, tmp_path/'out', n_draws=50, inside=False)
    assert {'AUC-ROC', 'AUC-ROC, mean of folds', 'malignant or not: sensitivity',
            'abnormal or not: AUC-ROC'} <= set(found['table'].index)
    metrics = json.loads((tmp_path/'out'/'metrics.json').read_text())
    val = [pd.read_csv(f/'predictions.csv').split.eq('val').sum() for f in folds]
    assert metrics['chosen']['n_val'] == sum(val)
    assert any('temperature' in n for n in metrics['notes'])
    assert np.isfinite(found['scores'].value[['log_loss_prevalence', 'brier_prevalence']]).all()


def calls(job):
    "Count the function calls, of Python and C, in a job."
    n = [0]
    def count(frame, event, arg): n[0] += event in ('call', 'c_call')
    sys.setprofile(count)
    try: job()
    finally: sys.setprofile(None)
    return n[0]


def test_bootstrap_is_vectorised():
    "Ten times the draws need no more calls; `tools/bench_evaluate.py` compares it with a loop."
    s = simulate(60)
    few, many = (calls(lambda: interval_table(s.label, s.prob, s.patient_id, n))
                 for n in (200, 2000))
    assert many < 1.1*few, (few, many)


def test_bootstrap_benchmark():
    "python tools/bench_evaluate.py, cut short: the same scores as scikit-learn's, then a ratio."
    command = [sys.executable, 'tools/bench_evaluate.py', '--patients', '40', '--draws', '20',
               '--loop', '5']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True,
                            timeout=PATIENCE).stdout
    assert re.search(r'ratio: +\d', done)
