"""The audit on trial: phantoms with one leak at a time, the network itself, runs of a grid, and the command.

On a phantom whose lesions cannot be seen, whatever is found comes from a leak. Each leak of chapter 00a must move the rung that
closes it, and no other; without a leak no rung may do better than chance; with lesions to be seen both protocols must find them.
"""
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from joblib import Parallel, delayed

from cesm_nb.audit import check_clinical, find_leaks
from cesm_nb.data import PROTOCOLS, SWITCHES
from cesm_nb.grids import make_grid, paired_differences, plan_runs, score_variants
from cesm_nb.ladder import WALK, ladder, walk
from cesm_nb.phantom import LEAKS, make_phantom
from cesm_nb.stats import interval_table
from cesm_nb.tables import PROBS
from cesm_nb.train import TrainConfig, fit, make_config
from conftest import PATIENCE, ROOT

CLOSES = dict(twin='split_unit', region='roi_source', density='density_missing', view='mask_missing_views')
PHANTOMS = {'none': dict(leaks=(), signal=0., clinical=0.), **{k: dict(leaks=(k,), signal=0., clinical=0.) for k in LEAKS},
            'blind': dict(signal=0., clinical=0.), 'clear': dict(signal=2.)}
BROKEN = {'clinical with regions': PROTOCOLS['clinical'] | dict(roi_source='annotation')} # a leak put in on purpose


def try_phantom(folder, name):
    "Scores and paired steps of the stand-in on one phantom."
    root = make_phantom(folder/name, 100, seed=1, size_px=100, progress=False, **PHANTOMS[name])
    pooled = walk(root, folder/f'{name}-tensors', ladder() | BROKEN)
    rungs = list(ladder())[:5]
    pairs = tuple(zip(rungs, rungs[1:])) + (('clinical', 'clinical with regions'),)
    table = lambda t: t[t.score == 'auc'][['value', 'low', 'high']]
    return table(score_variants(pooled, 500)), table(paired_differences(pooled, pairs, 500))


@pytest.fixture(scope='module')
def tried(tmp_path_factory):
    "All phantoms, two at a time."
    folder = tmp_path_factory.mktemp('phantoms')
    return dict(zip(PHANTOMS, Parallel(2)(delayed(try_phantom)(folder, n) for n in PHANTOMS)))


def assert_at_chance(scores, name):
    "No part of the interval may lie wholly above chance."
    assert scores.low[name] < .5, f'{name}: AUC {scores.value[name]:.2f} [{scores.low[name]:.2f}, {scores.high[name]:.2f}] is above chance'


def test_no_leak_no_rung_above_chance(tried):
    for name in ladder(): assert_at_chance(tried['none'][0], name)


@pytest.mark.parametrize('leak', LEAKS)
def test_each_leak_moves_its_own_rung_alone(tried, leak):
    scores, steps = tried[leak]
    own = WALK[CLOSES[leak]]
    assert scores.low['paper'] > .5 or leak == 'density' and scores.low['split by patient'] > .5
    for change, step in steps.iloc[:4].iterrows():
        if change.endswith(f'-> {own}'): assert step.high < 0 and step.value < -.08, change
        else: assert abs(step.value) < .08, change
    if leak != 'density': assert_at_chance(scores, 'clinical')


def test_without_a_signal_the_paper_succeeds_and_clinical_does_not(tried):
    scores, _ = tried['blind']
    assert scores.low['paper'] > .6
    assert_at_chance(scores, 'clinical')


def test_with_a_signal_both_succeed(tried):
    scores, _ = tried['clear']
    assert scores.low['paper'] > .75 and scores.low['clinical'] > .75


def test_a_leak_put_into_clinical_is_caught(tried):
    "By its settings, and by its score on a phantom in which there is nothing to see."
    check_clinical(make_config(dict(protocol='clinical')))
    with pytest.raises(ValueError, match="roi_source='annotation'"):
        check_clinical(make_config(dict(protocol='clinical', roi_source='annotation')))
    for k, v in PROTOCOLS['paper'].items(): # each switch of the paper's
        assert len(find_leaks(make_config({'protocol': 'clinical', k: v}))) == 1, k
    for name in ('region', 'blind'):
        scores, steps = tried[name]
        with pytest.raises(AssertionError, match='clinical with regions: AUC .* is above chance'):
            assert_at_chance(scores, 'clinical with regions')
        assert steps.low['clinical -> clinical with regions'] > .1


def test_the_network_reads_regions_where_nothing_else_is(tmp_path):
    "The four streams themselves, paper's protocol, no lesion visible; test_signal.py has the clinical side."
    root = make_phantom(tmp_path/'phantom', 160, signal=0., clinical=0., size_px=200, progress=False)
    ran = fit(make_config(dict(protocol='paper', image_size=64, epochs=8, batch_size=8, lr=1e-3, data_root=str(root),
                               mixed_precision='no', run_dir=str(tmp_path/'run'))))
    test = ran.predictions[ran.predictions.split == 'test']
    found = interval_table(test.label.to_numpy(), test[PROBS].to_numpy(), test.patient_id.to_numpy()).loc['auc']
    print(f'AUC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]')
    assert found.low > .5


def settings_of(plan, root):
    "Settings of one run of each variant, where it lies aside."
    where = ('run_dir', 'tensor_dir', 'data_root')
    return {p.variant: {f.name: getattr(p.cfg, f.name) for f in fields(p.cfg) if f.name not in where} for p in plan if p.cfg.seed == p.cfg.fold == 0}


def test_ladder_config_is_the_ladder(phantom, tmp_path):
    grid = make_grid(yaml.safe_load((ROOT/'configs'/'ladder.yaml').read_text()))
    assert grid.variants == ladder()
    each = settings_of(plan_runs(grid, phantom, tmp_path), phantom)
    names = list(each)
    for a, b in zip(names[:4], names[1:5]): # each rung differs from the next in exactly one field
        assert [k for k in each[a] if each[a][k] != each[b][k]] == [next(k for k, n in WALK.items() if n == b)]
    assert {k: each['clinical'][k] for k in SWITCHES} == PROTOCOLS['clinical']
    paper = yaml.safe_load((ROOT/'configs'/'paper.yaml').read_text())
    assert grid.base == paper


@pytest.mark.parametrize('name', ['regions', 'ablations'])
def test_grids_vary_one_thing_at_a_time(name):
    content = yaml.safe_load((ROOT/'configs'/f'{name}.yaml').read_text())
    new = {k for v in content['variants'].values() for k in v} - {'data'} - {f.name for f in fields(TrainConfig)}
    if new: pytest.skip(f'TrainConfig has no {sorted(new)} yet')
    grid = make_grid(content)
    assert all(len(v) <= 1 for v in grid.variants.values())


TINY = dict(base=dict(image_size=32, epochs=1, mixed_precision='no'), n_folds=3, seeds=[0, 1], variants={
    'paper': ladder()['paper'], 'split by patient': ladder()['split by patient'], 'faked': dict(data='faked')},
    data={'faked': dict(how='fake')}, rescore={'not at test': dict(of='paper', roi_source='none')},
    pairs=[['paper', 'split by patient'], ['paper', 'not at test']])
ONE = dict(base=TINY['base'], n_folds=3, variants=dict(a={}), rescore=dict(b=dict(of='a', roi_source='none')), pairs=[['a', 'b']])


def command(folder, data, *args):
    "Run `tools/run_grid.py` on grids in a folder."
    words = [sys.executable, 'tools/run_grid.py', '--grid', *sorted(folder.glob('*.yaml')), '--data', data, '--runs', folder/'runs',
             '--out', folder/'out', *args]
    return subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_command_resumes_and_shares(phantom, tmp_path):
    "Two grids, cut off, gone on with, tabulated; runs and tensors made alike are shared."
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(TINY))
    part = TINY | dict(variants={'whole': ladder()['paper'], 'CC only': ladder()['paper'] | dict(views='CC')}, seeds=[0],
                       rescore={}, pairs=[['whole', 'CC only']])
    (tmp_path/'second.yaml').write_text(yaml.safe_dump(part))
    plan = plan_runs(make_grid(TINY), phantom, tmp_path/'runs')
    fit(replace(plan[0].cfg, n_jobs=1)) # one run is there already
    there = Path(plan[0].cfg.run_dir)/'predictions.csv'
    when = there.stat().st_mtime_ns
    said = command(tmp_path, phantom, '--n-jobs', 2, '--without-papermill') # quicker
    assert said.returncode == 0, said.stderr
    assert there.stat().st_mtime_ns == when
    made = list((tmp_path/'runs').glob('*/seed*-fold*/predictions.csv'))
    assert len(made) == 3*2*3 + 3 # of the second grid's six runs three are the first one's
    assert len(list((tmp_path/'runs'/'tensors').iterdir())) == 3 # annotation, faked, none
    assert 'not at test' in said.stdout and said.stdout.count('PHANTOM') == 2
    settings = json.loads((tmp_path/'out'/'grid'/'settings.json').read_text())
    assert settings['grid']['seeds'] == [0, 1] and settings['command'].endswith('--seeds 0 1')
    assert {f.suffix for f in (tmp_path/'out'/'second').glob('table.*')} == {'.csv', '.md', '.tex'}


def test_command_refuses_before_it_runs(phantom, tmp_path):
    odd = TINY | dict(variants=TINY['variants'] | dict(odd=dict(epocs=3)))
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(odd))
    said = command(tmp_path, phantom)
    assert said.returncode != 0 and "run_grid: unknown parameter ['epocs']" in said.stderr and 'Traceback' not in said.stderr
    assert not (tmp_path/'runs').exists()


def test_a_run_that_stops_says_why(phantom, tmp_path):
    "What stops in the notebook's own process is said in one sentence, with the executed notebook."
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(ONE | dict(base=TINY['base'] | dict(lr=1e30, epochs=3))))
    said = command(tmp_path, phantom)
    assert said.returncode != 0 and 'run_grid: FloatingPointError' in said.stderr and 'notebook.ipynb' in said.stderr
    assert 'Traceback' not in said.stderr


def test_grid_on_a_cluster(phantom, tmp_path):
    "`--dask ADDRESS`: the workers of a cluster execute the runs through papermill."
    distributed = pytest.importorskip('distributed', reason="pip install 'cesm_nb[dask]' to test a cluster")
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(ONE))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        said = command(tmp_path, phantom, '--dask', cluster.scheduler_address)
    assert said.returncode == 0, said.stderr
    executed = list((tmp_path/'runs').glob('*/seed*-fold*/notebook.ipynb'))
    assert len(executed) == 3 and all('trainer.fit(cfg' in f.read_text() for f in executed)
    assert 'change of AUC-ROC' in said.stdout
