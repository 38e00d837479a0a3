"""Grids: their files, shared, resumed and rescored runs, published results, and the command.

All on phantoms at 32 px and one epoch: what is tested is the machinery.
"""
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from papermill.exceptions import PapermillExecutionError

from cesm_nb.experiments import run as experiments
from cesm_nb.cli import cesm_grid
from cesm_nb.core.settings import PROTOCOLS, SWITCHES, WHERE
from cesm_nb.experiments.grid import (
    list_finished, make_grid, own_settings, plan_rescoring, plan_runs, read_grid_file,
    rescored_path, run_grid, run_notebook, threads_each)
from cesm_nb.experiments.publish import (
    find_results, phrase_settings, read_results, show_results, write_results)
from cesm_nb.leakage.ladder import WALK, ladder
from cesm_nb.core.settings import TrainConfig, make_config
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.core.runs import seal_run
from cesm_nb.train import fit
from conftest import PATIENCE, ROOT, call

from cesm_nb.experiments.run import queue_jobs, read_grid, write_command
from cesm_nb.experiments.reproduce import read_changes

WITH_FOLDS = ('primary', 'ladder', 'regions', 'ablations', 'ablations_regions', 'pretraining')
NEW = {'split_seed', 'normalise_input'} - {f.name for f in fields(TrainConfig)}
needs_fields = pytest.mark.skipif(bool(NEW), reason=f'TrainConfig has no {sorted(NEW)} yet')


GONE = 'best_grid', 'best_more' # of version 0.1.0, whose files were removed: nothing is added
PUBLISHED = [p for p in sorted(ROOT.glob('results/*/settings.json'))
             if 'grid' in json.loads(p.read_text()) and p.parent.name not in GONE]


def read_yaml(name):
    "Read a file of `configs`, with what it extends if it is a grid."
    path = ROOT/'configs'/f'{name}.yaml'
    content = yaml.safe_load(path.read_text())
    return read_grid_file(path) if 'base' in content else content


# --- the files

@pytest.mark.parametrize('path', PUBLISHED, ids=lambda p: p.parent.name)
def test_published_settings_match_grid_files(path):
    "Seeds can be added to published results only if the file has the settings that were run."
    facts = json.loads(path.read_text())
    command = facts['command'] if isinstance(facts['command'], str) else facts['command'][0]
    changes = read_changes(command.partition(' --set ')[2].split())
    changes.pop('weights_dir', None) # a local folder
    file = next(w for w in command.split() if w.endswith('.yaml'))
    grid, there = read_grid(ROOT/file, changes), facts['grid']
    assert set(there['variants']) <= set(grid.variants) and there['n_folds'] == grid.n_folds
    for name, change in there['variants'].items(): # names may be those of version 0.1.0
        ran = {k: v for k, v in (there['base'] | change).items() if k != 'weights_dir'}
        expected = own_settings(grid.base | grid.variants[name])
        assert make_config(own_settings(ran)) == make_config(expected), name


@needs_fields
def test_ladder_grid_matches_ladder(phantom, tmp_path):
    grid = make_grid(read_yaml('ladder'))
    assert grid.variants == ladder()
    where = ('run_dir', 'tensor_dir', 'data_root')
    plan = plan_runs(replace(grid, base=grid.base | dict(pretrained=False)), phantom, tmp_path)
    each = {p.variant: {f.name: getattr(p.cfg, f.name) for f in fields(p.cfg)
                        if f.name not in where} for p in plan if p.cfg.seed == p.cfg.fold == 0}
    names = list(each)
    for a, b in zip(names[:4], names[1:5]): # each rung differs from the next in exactly one field
        changed = [k for k in each[a] if each[a][k] != each[b][k]]
        assert changed == [next(k for k, n in WALK.items() if n == b)]
    assert {k: each['clinical'][k] for k in SWITCHES} == PROTOCOLS['clinical']


@pytest.mark.parametrize('name', ['replication', *WITH_FOLDS])
def test_grids_use_the_paper_settings(name):
    "The settings and their differences from configs/paper.yaml were fixed here before any result."
    content, small = read_yaml(name), name not in ('replication', 'primary')
    base = read_yaml('paper') | dict(backbones='mobilenetv2_100,efficientnet_b0')
    if small: base |= dict(image_size=112, epochs=10)
    if name != 'replication': base |= dict(split_seed=0) # all seeds on the same folds
    if name in ('regions', 'ablations_regions'): base |= dict(split_unit='patient')
    if name == 'ablations': base |= dict(protocol='clinical')
    if name == 'regions': base |= dict(roi_source='annotation')
    assert content['base'] == base
    expected = (0, [0, 1, 2, 3, 4]) if name == 'replication' else (5, [0, 1, 2])
    assert (content['n_folds'], content['seeds']) == expected


@needs_fields
@pytest.mark.parametrize('name', ['replication', *WITH_FOLDS])
def test_grid_files_are_valid(name): make_grid(read_yaml(name))


@needs_fields
def test_variant_with_its_own_folds(phantom, tmp_path):
    "Three and four folds are planned; mixing folds and single splits, or too few, is rejected."
    def grid(n, **more):
        variants = dict(a={}, b=dict(n_folds=n))
        return make_grid(dict(base=BASE, n_folds=3, seeds=[0, 1], variants=variants) | more)
    plan = plan_runs(grid(4), phantom, tmp_path)
    found = {v: sorted((p.cfg.n_folds, p.cfg.fold) for p in plan
                       if p.variant == v and p.cfg.seed == 1) for v in 'ab'}
    assert found == dict(a=[(3, k) for k in range(3)], b=[(4, k) for k in range(4)])
    with pytest.raises(ValueError, match='n_folds=2 is too small'): grid(2)
    message = 'b has n_folds=0 in a grid of n_folds=3: .* use a grid for each'
    with pytest.raises(ValueError, match=message): grid(0)
    message = 'b has n_folds=3 in a grid of n_folds=0'
    with pytest.raises(ValueError, match=message): grid(3, n_folds=0)


@pytest.mark.parametrize('name', ['regions', 'ablations', 'ablations_regions'])
def test_variants_differ_in_one_setting(name):
    assert all(len(v) <= 1 for v in read_yaml(name)['variants'].values())


def test_confirmation_uses_published_recipes():
    "Each recipe has its published settings; the patients are the test set of every run."
    grid = make_grid(read_yaml('confirmation'))
    settings = lambda base, change: asdict(make_config(own_settings(base | change)))
    for variant, name in (('clinical', 'primary'), ('regions', 'primary'), ('best', 'best_grid'),
                          ('best, each breast by itself', 'best_grid')):
        was = json.loads((ROOT/'results'/name/'settings.json').read_text())['grid']
        there = settings(was['base'], was['variants'][variant])
        here = settings(grid.base, grid.variants[variant])
        changed = {k for k in here if here[k] != there[k]}
        # folds are its own; the published backbone is the one whose weights were there
        assert changed <= {'split_seed', 'backbones', 'weights_dir'}
    assert len(set(grid.test_patients)) == 65 and grid.n_folds == 0
    assert grid.pairs[0] == ('clinical', 'regions')


def test_best_is_a_candidate_of_the_search():
    "configs/best.yaml, and what its comment adds for both breasts, are recipes of the search."
    search, alone = make_grid(read_yaml('probe_search')), read_yaml('best')
    pair = dict(other_breast='pair', probe_strength=8., probe_order=.03125)
    for own, name in ((alone, 'single: 512 and 224 px, attention'),
                      (alone | pair, 'both: 512 and 224 px, attention, two penalties')):
        folds = dict(n_folds=5, split_seed=0)
        there = make_config(own_settings(search.base | search.variants[name] | folds))
        assert make_config(own) == there
        assert name in sum(search.select.values(), [])
    assert len(sum(search.select.values(), [])) == 24


def test_primary_compares_clinical_with_regions():
    content = read_yaml('primary')
    assert content['variants'] == dict(clinical=dict(protocol='clinical'),
                                       regions=dict(protocol='paper', split_unit='patient'))
    assert content['pairs'][0] == ['clinical', 'regions']
    rescored = [r for r in content['rescore'].values() if r['of'] == 'regions']
    assert {r['roi_source'] for r in rescored} == {'none', 'breast'}


@needs_fields
def test_backbones_of_the_command_replace_those_of_the_file(tmp_path):
    "A replacement is listed under its own name everywhere, also in variants with one backbone."
    weights = tmp_path/'weights'
    weights.mkdir()
    for name in ('mobilenetv2_100', 'efficientnet_lite0'): (weights/f'{name}.safetensors').touch()
    changes = ['backbones=mobilenetv2_100,efficientnet_lite0', f'weights_dir={weights}']
    g = read_grid(ROOT/'configs'/'ablations.yaml', read_changes(changes))
    assert g.base['backbones'] == 'mobilenetv2_100,efficientnet_lite0'
    assert g.base['weights_dir'] == str(weights)
    assert g.variants['efficientnet_lite0 only'] == dict(backbones='efficientnet_lite0')
    assert ('full', 'efficientnet_lite0 only') in g.pairs and 'efficientnet_b0' not in str(g)
    assert write_command('ablations', g.seeds, Path('CDD-CESM'), changes) == (
        'cesm_grid configs/ablations.yaml --data CDD-CESM --seeds 0 1 2 --set '
        'backbones=mobilenetv2_100,efficientnet_lite0 weights_dir=weights')


def test_changed_settings_keep_their_type():
    read = read_changes(['backbones=a,b', 'weights_dir=../x', 'lr=1e-4', 'epochs=3',
                         'pretrained=false', 'normalise_input=null'])
    assert read == dict(backbones='a,b', weights_dir='../x', lr=1e-4, epochs=3, pretrained=False,
                        normalise_input=None)
    with pytest.raises(ValueError, match="'epochs' is not a setting: write KEY=VALUE"):
        read_changes(['epochs'])


# --- runs

BASE = dict(image_size=32, epochs=1, mixed_precision='no',
            backbones='lcnet_035') # the smallest network: no test depends on it
SMALL = dict(base=BASE, n_folds=3, seeds=[0, 1],
             variants=dict(regions={}, none=dict(roi_source='none')),
             rescore={'not at test': dict(of='regions', roi_source='none')},
             pairs=[['regions', 'none'], ['none', 'not at test']])


@pytest.fixture(scope='module')
def phantom(module_path):
    "Fewer patients than in other tests: here data are read for every run."
    return make_phantom(module_path/'phantom', 21, seed=0, signal=2., size_px=80, progress=False)


@pytest.fixture(scope='module')
def ran(phantom, module_path):
    "A finished grid of two seeds: the grid, its plan, its folder."
    runs = module_path/'runs'
    grid = make_grid(SMALL)
    run_grid(grid, plan := plan_runs(grid, phantom, runs))
    return grid, plan, runs


def copy_runs(runs, to):
    "Copy finished runs without files that results do not need."
    return shutil.copytree(runs, to, ignore=shutil.ignore_patterns('checkpoints', 'tensors'))


def test_interrupt_in_a_kernel_is_an_interrupt(tmp_path, monkeypatch):
    "Ctrl-C reaches the kernel too: the command ends as interrupted, without its traceback."
    def stop(*args, **options):
        raise PapermillExecutionError(1, 1, '', 'KeyboardInterrupt', '', [])
    monkeypatch.setattr('papermill.execute_notebook', stop)
    cfg = make_config(dict(run_dir=str(tmp_path/'run')))
    with pytest.raises(KeyboardInterrupt):
        run_notebook(cfg, ROOT/'nbs'/'04_train_colab_t4.ipynb')


def test_threads_are_the_users_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert threads_each(2) == 3
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('cesm_nb.experiments.grid.cpu_count', lambda: 4)
    assert [threads_each(n) for n in (0, 1, 2, 8)] == [4, 4, 2, 1]


def test_interrupted_run_resumes_and_finished_runs_are_kept(phantom, tmp_path, monkeypatch):
    "Interrupted after the first of two epochs; later, one file of rescored predictions is lost."
    longer = dict(base=BASE | dict(epochs=2), seeds=[0], variants=dict(regions={}), pairs=[])
    grid = make_grid(SMALL | longer)
    plan = plan_runs(grid, phantom, tmp_path)
    def stop(history, epochs): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(plan[1].cfg, stop)
    assert list_finished(grid, plan)['regions'] == ()
    run_grid(grid, plan, n_jobs=2) # one thread each on two cores
    sessions = json.loads((Path(plan[1].cfg.run_dir)/'config.json').read_text())['sessions']
    assert [s['first_epoch'] for s in sessions] == [1, 2]
    assert list_finished(grid, plan) == {'regions': (0,), 'not at test': (0,)}
    rescored = plan_rescoring(grid, plan)['not at test'][1]
    lost = rescored_path(plan[0].cfg.run_dir, rescored.tensor_dir)
    expected = pd.read_csv(lost)
    lost.unlink()
    assert list_finished(grid, plan)['not at test'] == ()
    files = [f for p in plan for f in Path(p.cfg.run_dir).rglob('*') if f.is_file()]
    kept = [f for f in files if f.name != 'status.json'] # a digest is added to it
    when = {f: f.stat().st_mtime_ns for f in kept}
    monkeypatch.setattr('os.cpu_count', lambda: 2)
    run_grid(grid, plan)
    last_digits = 1e-5 # they depend on the number of threads
    pd.testing.assert_frame_equal(pd.read_csv(lost), expected, atol=last_digits)
    assert {f: f.stat().st_mtime_ns for f in when} == when


def test_grids_share_one_queue(ran, phantom, tmp_path):
    "Seed by seed; a run shared by two grids appears once, with the rescored tensors of both."
    grid, plan, runs = ran
    assert queue_jobs(dict(a=grid), dict(a=plan)) == []
    other = make_grid(SMALL | dict(
        variants=dict(whole={}, none=dict(roi_source='none')),
        rescore={'breast at test': dict(of='whole', roi_source='breast')}, seeds=[1, 2], pairs=[]))
    grids = dict(a=grid, b=other)
    jobs = queue_jobs(grids, {k: plan_runs(g, phantom, tmp_path) for k, g in grids.items()})
    assert [c.seed for c, _ in jobs] == [0]*6 + [1]*6 + [2]*6
    assert len({c.run_dir for c, _ in jobs}) == 18
    sources = [sorted(o.roi_source for o in others) for _, others in jobs[6:9]]
    assert sources == [['breast', 'none']]*3


# --- results

def test_results_of_complete_seeds(ran, tmp_path):
    grid, plan, _ = ran
    tables = write_results(grid, plan, tmp_path/'out', 'a trial', n_draws=100)
    t = tables['table']
    assert t.index.tolist() == ['regions', 'none', 'not at test'] and set(t.seeds) == {2}
    assert all(re.fullmatch(r'0\.\d{3}, 0\.\d{3}', v) for v in t['each seed, AUC-ROC'])
    assert {'AUC-ROC', 'AUC-ROC, mean of folds'} <= set(t)
    s = tables['scores']
    each = s[s.score == 'auc'][['seed 0', 'seed 1']]
    assert (each.mean(axis=1) - s[s.score == 'auc'].value).abs().max() < 1e-9
    d = tables['differences']
    assert (d[d.score == 'auc'].p_holm >= d[d.score == 'auc'].p).all()
    curves = pd.read_csv(tmp_path/'out'/'curves.csv')
    assert len(curves) == 2*2*3
    assert {'train_loss', 'val_loss', 'train_accuracy', 'val_accuracy'} <= set(curves)
    made = {f.name for f in (tmp_path/'out').iterdir()}
    assert {f'{k}.{e}' for k in ('fig5_accuracy', 'fig6_loss', 'scores', 'differences')
            for e in ('png', 'svg')} <= made
    for f in (tmp_path/'out').iterdir():
        assert not re.search(rb'P\d+_[LR]|patient_id', f.read_bytes()), f.name
        if f.suffix == '.md':
            assert f.read_text().startswith('PHANTOM. a trial: 3 folds, seeds 0, 1;')


def test_unfinished_seeds_are_left_out_and_listed(ran, tmp_path):
    grid, plan, runs = ran
    present = copy_runs(runs, tmp_path/'runs')
    plan = plan_runs(grid, plan[0].cfg.data_root, present)
    part = next(p.cfg for p in plan if p.variant == 'none' and p.cfg.seed == 1)
    (Path(part.run_dir)/'predictions.csv').unlink()
    tables = write_results(grid, plan, tmp_path/'out', n_draws=50)
    assert tables['table'].seeds.to_dict() == {'regions': 2, 'none': 1, 'not at test': 2}
    assert set(tables['changes'].seeds) == {1} # pairs use the seed finished for both
    assert set(tables['changes']['p, AUC-ROC']) == {'one seed: not tested'}
    text = (tmp_path/'out'/'table.md').read_text()
    assert 'INCOMPLETE, finished of seeds 0, 1: regions; not at test: 0, 1 | none: 0' in text
    settings = json.loads((tmp_path/'out'/'settings.json').read_text())
    assert settings['seeds'] == {'regions': [0, 1], 'none': [0], 'not at test': [0, 1]}
    assert settings['n_runs'] == 9
    for p in plan: (Path(p.cfg.run_dir)/'predictions.csv').unlink(missing_ok=True)
    message = ("no seed of any variant is complete: of 6 runs of each variant there are "
               "'regions' 0; 'none' 0")
    with pytest.raises(ValueError, match=message):
        write_results(grid, plan, tmp_path/'nothing')
    assert not (tmp_path/'nothing').exists()


def test_published_settings_are_complete_without_paths(ran, tmp_path):
    grid, plan, runs = ran
    command = 'cesm_grid configs/small.yaml --data phantom'
    write_results(grid, plan, tmp_path/'out', command=command, n_draws=50)
    text = (tmp_path/'out'/'settings.json').read_text()
    s = json.loads(text)
    manifest = pd.read_csv(Path(plan[0].cfg.run_dir)/'manifest.csv')
    assert (s['command'], s['phantom'], s['weights_source']) == (command, True, 'scratch')
    assert (s['n_breasts'], s['n_patients']) == (len(manifest), manifest.patient_id.nunique())
    assert s['n_images'] == manifest.has_cc.sum() + manifest.has_mlo.sum()
    none = s['variants']['none']
    assert none['switches']['roi_source'] == 'none' and s['settings']['image_size'] == 32
    gone = {*WHERE, 'splits_csv', 'fold', 'seed'}
    kept = {f.name for f in fields(TrainConfig)} - gone
    assert kept == {*s['settings'], *none['settings']}
    assert {'torch', 'timm'} <= set(s['versions'])
    assert len(s['data_fingerprint']) > 8 and s['commit']
    for path in (runs, tmp_path, ROOT): assert str(path) not in text


def test_results_on_real_images_need_one_clean_commit(ran, tmp_path):
    "Runs on real data have one commit for each variant and seed; variants may differ."
    grid, plan, runs = ran
    present = copy_runs(runs, tmp_path/'runs')
    plan = plan_runs(grid, plan[0].cfg.data_root, present)
    def set_commits(commits):
        for p, commit in zip(plan, commits):
            path = Path(p.cfg.run_dir)/'config.json'
            config = json.loads(path.read_text()) | dict(phantom=False, commit=commit)
            config['settings'] |= dict(data_root='', tensor_dir='') # their files name the phantom
            for s in config['sessions']: s['commit'] = commit
            path.write_text(json.dumps(config))
            seal_run(p.cfg.run_dir)
    dirty = ("runs were made at commit 'a1\\+changes', which nobody can check out: "
             'commit first and run again')
    mixed = (f'{plan[0].variant}: runs of one seed were made at 2 commits, a1, b2: '
             'run all of a variant and seed at one')
    for commits, message in [(['a1+changes'] + ['a1']*11, dirty), (['a1'] + ['b2']*11, mixed)]:
        set_commits(commits)
        with pytest.raises(ValueError, match=message): write_results(grid, plan, tmp_path/'out')
        assert not (tmp_path/'out').exists()
    set_commits(['a1']*12)
    write_results(grid, plan, tmp_path/'out', n_draws=50)
    assert json.loads((tmp_path/'out'/'settings.json').read_text())['commit'] == 'a1'
    text = (tmp_path/'out'/'table.md').read_text()
    assert 'PHANTOM' not in text and 'commits' not in text
    of = {v: f'{i}{i}' for i, v in enumerate(dict.fromkeys(p.variant for p in plan))}
    set_commits([of[p.variant] for p in plan])
    write_results(grid, plan, tmp_path/'out', n_draws=50)
    assert json.loads((tmp_path/'out'/'settings.json').read_text())['commit'] == of
    note = 'run at commits ' + ', '.join(f'{c} ({v})' for v, c in of.items())
    for k in ('table', 'changes', 'binary'):
        assert note in (tmp_path/'out'/f'{k}.md').read_text().split('\n')[0]


def test_published_results_come_from_a_clean_commit():
    "Results in the repository."
    published = [json.loads(f.read_text())
                 for f in sorted((ROOT/'results').glob('*/settings.json'))]
    published = [s for s in published if 'grid' in s]
    if not published: pytest.skip('no grid is published yet')
    for s in published:
        single = isinstance(s['commit'], str)
        commits = [s['commit']] if single else [s['commit'][v] for v in s['variants']]
        commits = [c for of in commits for c in (of.values() if isinstance(of, dict) else [of])]
        assert s['phantom'] is False, s['command']
        assert all(re.fullmatch('[0-9a-f]{40}', c) for c in commits), s['command']
        folders = [s['settings'].get('weights_dir'), s['grid']['base'].get('weights_dir')]
        assert '/' not in str(folders)


def test_published_results_are_read_back(ran, tmp_path, monkeypatch):
    grid, plan, _ = ran
    write_results(grid, plan, tmp_path/'results'/'small', 'a trial', 'some command', n_draws=50)
    monkeypatch.chdir(tmp_path)
    found = read_results('small')
    assert set(found) == {'table', 'binary', 'changes', 'confusion', 'scores', 'differences',
                          'curves', 'settings'}
    assert show_results('small').loc['regions', 'compared with'] == '' # empty cells are not NaN
    pairs = show_results('small', 'changes').index
    assert pairs.tolist() == ['regions -> none', 'none -> not at test']
    sentence = phrase_settings('small')
    assert 'Made by `some command`' in sentence and 'weights: scratch' in sentence
    assert 'not published yet' in phrase_settings('ladder')
    assert 'configs/ladder.yaml' in show_results('ladder').data
    with pytest.raises(ValueError, match='results/ladder is absent'): find_results('ladder')


# --- the command

GRID = 'from cesm_nb.cli import cesm_grid; cesm_grid()'


def command(folder, data, *args):
    "Run `cesm_grid` on the grids of a folder."
    return call(cesm_grid, *sorted(folder.glob('*.yaml')), '--data', data, '--runs', folder/'runs',
                '--out', folder/'out', *args)


def test_one_split_per_seed(phantom, tmp_path):
    "`n_folds: 0`: new test breasts per seed, tables of runs and of means, Figures 5 and 6."
    again = dict(base=BASE | dict(epochs=2), n_folds=0, seeds=[0, 1, 2], variants=dict(paper={}))
    (tmp_path/'again.yaml').write_text(yaml.safe_dump(again))
    done = command(tmp_path, phantom, '--without-papermill')
    assert done.returncode == 0, done.stderr
    out = tmp_path/'out'/'again'
    runs, summary = pd.read_csv(out/'runs.csv'), pd.read_csv(out/'summary.csv').set_index('score')
    assert runs.seed.tolist() == [0, 1, 2]
    assert {'test breasts', 'women', 'Accuracy', 'AUC-ROC', 'PR-AUC', 'F1-score'} <= set(runs)
    tested = [tuple(pd.read_csv(f).query('split == "test"').patient_id)
              for f in sorted((tmp_path/'runs').glob('*/seed*/splits.csv'))]
    assert len(set(tested)) == 3
    assert [summary.published[k] for k in ('accuracy', 'auc', 'pr_auc')] == [.8721, .9676, .9458]
    each = pd.read_csv(out/'scores.csv').query('score == "auc"').value
    assert abs(summary.value['auc'] - each.mean()) < 1e-9 and summary.lowest['auc'] == each.min()
    assert len(pd.read_csv(out/'curves.csv')) == 3*2
    assert {'fig5_accuracy.png', 'fig6_loss.png'} <= {f.name for f in out.iterdir()}
    assert 'PHANTOM' in done.stdout and '0.8721' not in done.stdout # nor in the table
    assert 'published' not in (out/'table.csv').read_text()


TINY = SMALL | dict(
    variants={'paper': ladder()['paper'], 'split by patient': ladder()['split by patient'],
              'faked': dict(data='faked')}, data={'faked': dict(how='fake')},
    rescore={'not at test': dict(of='paper', roi_source='none')},
    pairs=[['paper', 'split by patient'], ['paper', 'not at test']])
ONE = dict(base=BASE, n_folds=3, variants=dict(a={}),
           rescore=dict(b=dict(of='a', roi_source='none')), pairs=[['a', 'b']])


def test_command_resumes_and_shares(phantom, tmp_path):
    "Two grids, interrupted, resumed, tabulated; equal runs and tensors are shared."
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(TINY))
    part = TINY | dict(
        variants={'whole': ladder()['paper'], 'CC only': ladder()['paper'] | dict(views='CC')},
        seeds=[0], rescore={}, pairs=[['whole', 'CC only']])
    (tmp_path/'second.yaml').write_text(yaml.safe_dump(part))
    plan = plan_runs(make_grid(TINY), phantom, tmp_path/'runs')
    fit(replace(plan[0].cfg, n_jobs=1)) # one run is finished already
    present = Path(plan[0].cfg.run_dir)/'predictions.csv'
    when = present.stat().st_mtime_ns
    # papermill costs seconds per run
    done = command(tmp_path, phantom, '--n-jobs', 2, '--without-papermill')
    assert done.returncode == 0, done.stderr
    assert present.stat().st_mtime_ns == when
    made = list((tmp_path/'runs').glob('*/seed*-fold*/predictions.csv'))
    assert len(made) == 3*2*3 + 3 # three of the second grid's six runs belong to the first
    assert len(list((tmp_path/'runs'/'tensors').iterdir())) == 3 # annotation, faked, none
    assert 'not at test' in done.stdout and done.stdout.count('PHANTOM') == 2
    settings = json.loads((tmp_path/'out'/'grid'/'settings.json').read_text())
    assert settings['grid']['seeds'] == [0, 1] and settings['command'].endswith('--seeds 0 1')
    assert {f.suffix for f in (tmp_path/'out'/'second').glob('table.*')} == {'.csv', '.md', '.tex'}


def test_command_publishes_finished_grids(phantom, tmp_path):
    "One of two grids has no runs: the other is published, and one sentence lists what is missing."
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(ONE))
    (tmp_path/'none.yaml').write_text(yaml.safe_dump(ONE | dict(base=BASE | dict(lr=1e-3))))
    grid = make_grid(ONE)
    run_grid(grid, plan_runs(grid, phantom, tmp_path/'runs'))
    done = command(tmp_path, phantom, '--only-results', '--seeds', 0, 1)
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    message = ('cesm_grid: none: no seed of any variant is complete: of 6 runs of each variant '
               "there are 'a' 0")
    assert message in done.stderr
    text = (tmp_path/'out'/'grid'/'table.md').read_text()
    assert 'INCOMPLETE, finished of seeds 0, 1: a; b: 0' in text
    assert not (tmp_path/'out'/'none').exists()


def test_command_rejects_before_running(phantom, tmp_path):
    odd = TINY | dict(variants=TINY['variants'] | dict(odd=dict(epocs=3)))
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(odd))
    done = command(tmp_path, phantom)
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    assert "grid.yaml: unknown parameter 'epocs': did you mean epochs?" in done.stderr
    assert not (tmp_path/'runs').exists()


def test_command_writes_to_runs_by_default(phantom, tmp_path, monkeypatch):
    (tmp_path/'one.yaml').write_text(yaml.safe_dump(ONE))
    written = []
    def write(grid, plan, out, *args, **more):
        written.append(out)
        out.mkdir(parents=True), (out/'table.md').write_text('')
    monkeypatch.setattr(experiments, 'write_results', write)
    monkeypatch.setattr(experiments, 'find_checkout', lambda: tmp_path)
    for more in ([], ['--out', tmp_path/'results']):
        done = call(cesm_grid, tmp_path/'one.yaml', '--data', phantom, '--only-results', *more)
        assert done.returncode == 0
    assert written == [tmp_path/'runs'/'results'/'one', tmp_path/'results'/'one']


def test_results_of_other_data_are_never_replaced(phantom, tmp_path):
    "Results of a phantom do not replace those of real images: rejected before training."
    before = {f: f.read_bytes() for f in (ROOT/'results'/'primary').iterdir()}
    done = call(cesm_grid, ROOT/'configs'/'primary.yaml', '--data', phantom, '--runs',
                tmp_path/'runs', '--out', ROOT/'results', '--without-papermill', '--set',
                'pretrained=false')
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    message = 'results/primary holds results on another data set (data_fingerprint '
    assert message in done.stderr and 'give another --out' in done.stderr
    assert {f: f.read_bytes() for f in (ROOT/'results'/'primary').iterdir()} == before
    assert not (tmp_path/'runs').exists()


def test_failed_run_is_explained(phantom, tmp_path):
    "An error in the notebook's process is reported in one sentence, with the executed notebook."
    failing = ONE | dict(base=BASE | dict(lr=1e9, epochs=3))
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(failing))
    done = command(tmp_path, phantom)
    assert done.returncode != 0 and 'cesm_grid: NotFiniteError' in done.stderr
    assert 'notebook.ipynb' in done.stderr
    assert 'Traceback' not in done.stderr


def two_runs_train(runs, process):
    "Wait until two runs have stored an epoch, or the process has ended."
    for _ in range(PATIENCE*2):
        if len(list(runs.glob('*/seed*/checkpoints/last'))) == 2: return True
        try: process.wait(.4)
        except subprocess.TimeoutExpired: continue
        return False
    return False


def test_workers_end_with_the_command(phantom, tmp_path):
    "Killed while two seeds train in parallel: no training continues."
    endless = dict(base=BASE | dict(epochs=100_000, patience=100_000), n_folds=0, seeds=[0, 1],
                   variants=dict(a={}))
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(endless))
    words = [sys.executable, '-c', GRID, tmp_path/'grid.yaml', '--data', phantom, '--runs',
             tmp_path/'runs', '--n-jobs', 2, '--without-papermill']
    with open(tmp_path/'output', 'w') as output:
        started = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=output, stderr=output)
    try: assert two_runs_train(tmp_path/'runs', started), (tmp_path/'output').read_text()
    finally:
        workers = psutil.Process(started.pid).children()
        started.kill()
        started.wait(PATIENCE)
    assert len(workers) >= 2
    alive = psutil.wait_procs(workers, timeout=PATIENCE)[1]
    for worker in alive: worker.kill() # if the test fails
    assert alive == []


def test_grid_on_a_cluster(phantom, tmp_path):
    "`--dask ADDRESS`: the workers of a cluster execute the runs through papermill."
    reason = "pip install 'cesm_nb[dask]' to test a cluster"
    distributed = pytest.importorskip('distributed', reason=reason)
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(ONE | dict(n_folds=0, seeds=[0, 1], pairs=[])))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1,
                                  dashboard_address=None) as cluster:
        done = command(tmp_path, phantom, '--dask', cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    executed = list((tmp_path/'runs').glob('*/seed*/notebook.ipynb'))
    assert len(executed) == 2 and all('trainer.fit(cfg' in f.read_text() for f in executed)
    assert len(list((tmp_path/'runs').glob('*/seed*/rescored-*.csv'))) == 2
