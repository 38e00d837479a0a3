"""Published results: clean commits, no local paths, consistent counts, and the README's table.

Each check is first tried on synthetic files, to show that it can fail.
"""
import ast
import json
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from cesm_nb.experiments.front_page import (
    LEAD, MORE, NOT_RUN, READER, lead_scores, lead_table, phrase_finding, phrase_outcome,
    phrase_references, phrase_replication)
from cesm_nb.experiments.grid import make_grid, read_grid_file
from cesm_nb.experiments.publish import find_results, fold_tables, repeat_tables, write_tables
from cesm_nb.synthetic.predictions import simulate
from cesm_nb.core.terms import PROBS
from conftest import ROOT

from describe_confirmation import name_strata, weigh
from make_readme import fill, make_blocks

PUBLISHED = sorted((ROOT/'results').rglob('settings.json'))
names = lambda f: str(f.parent.relative_to(ROOT/'results'))
LOCAL = r'(?<![\w.:/])/(?:work|home|root|tmp|mnt|Users|data|content)/[^\s"<]*' # paths


def find_odd(
    path, # settings.json
): # list of sentences
    "List what may not be published: bad commits, local paths, inconsistent counts."
    s, out = json.loads(path.read_text()), []
    commit = s.get('commit')
    by_variant = isinstance(commit, dict) and commit.keys() == s['variants'].keys()
    # of a variant, or of each of its seeds
    commits = [c for of in (commit.values() if by_variant else [commit])
               for c in (of.values() if isinstance(of, dict) else [of])]
    out += [f'commit {c!r}' for c in commits if not re.fullmatch('[0-9a-f]{40}', str(c))]
    for f in path.parent.iterdir():
        if f.suffix in ('.json', '.csv', '.md', '.tex', '.html', '.svg'):
            paths = re.findall(LOCAL, f.read_text())
            out += [f'{f.name} names {p}' for p in sorted(set(paths))]
    check = odd_grid if 'grid' in s else odd_audit if 'files' in s else lambda *_: []
    return out + check(s, path.parent)


def odd_grid(s, folder):
    "Counts of a grid: breasts, patients, seeds, runs, epochs."
    scores, curves, out = pd.read_csv(folder/'scores.csv'), pd.read_csv(folder/'curves.csv'), []
    caption = (folder/'table.md').read_text().split('\n')[0]
    if caption != s['caption'] or s['phantom']: out.append(f'caption {caption!r}')
    seeds = {k: len(v) for k, v in s['seeds'].items() if v}
    given = s['grid']['variants'] # a variant may have its own number of folds
    runs = sum(n*max(1, given[k].get('n_folds', s['grid']['n_folds']))
               for k, n in seeds.items() if k in given)
    if not runs == s['n_runs'] == len(curves[['variant', 'seed', 'fold']].drop_duplicates()):
        out.append(f'{s["n_runs"]} runs')
    if set(scores.variant) != set(seeds):
        out.append(f'variants {sorted(set(scores.variant) ^ set(seeds))}')
    for name, t in scores.groupby('variant'):
        held_out = len(s['grid'].get('test_patients', ())) # test set of all runs
        if s['grid']['n_folds']:
            pairs = {*zip(t.breasts, t.patients)}
            ok = set(t.seeds) == {seeds[name]} and pairs == {(s['n_breasts'], s['n_patients'])}
        elif held_out:
            ok = set(t.seeds) == {seeds[name]} and set(t.patients) == {held_out}
            ok = ok and held_out <= t.breasts.max() <= 2*held_out
        else:
            fewer = t.breasts.max() < s['n_breasts'] and t.patients.max() < s['n_patients']
            ok = t.seed.nunique() == seeds[name] and fewer
        if not ok: out.append(f'counts of {name}')
    return out


def odd_audit(s, folder):
    "Counts of the audit: no control has breasts or patients beyond those of the files."
    t, f, out = pd.read_csv(folder/'controls.csv'), s['files'], []
    if f['phantom']: out.append('a phantom')
    for label, part in t.groupby('label'):
        n = sum(f[f'{c} ({label})'] for c in ('normal', 'benign', 'malignant'))
        if set(part.breasts) != {n}: out.append(f'{label}: {n} breasts')
    if t.patients.max() != f['patients'] or t.breasts.max() != f['breasts']:
        out.append(f'{f["patients"]} patients')
    if set(t.seeds) != {s['settings']['n_repeats']}:
        out.append(f'{s["settings"]["n_repeats"]} repeats')
    return out


@pytest.mark.parametrize('path', PUBLISHED, ids=names)
def test_published_results_pass_all_checks(path): assert find_odd(path) == []


@pytest.mark.parametrize('path', sorted((ROOT/'results').rglob('predictions.csv.gz')), ids=names)
def test_published_predictions_hold_only_probabilities(path):
    "No label, age, density or text; each test breast once per variant and seed of settings.json."
    t, s = pd.read_csv(path), json.loads((path.parent/'settings.json').read_text())
    assert [*t] == ['variant', 'seed', 'fold', 'patient_id', 'side', 'split', *PROBS]
    assert not t.duplicated(['variant', 'seed', 'patient_id', 'side']).any()
    assert set(t.split) == {'test'}
    np.testing.assert_allclose(t[PROBS].sum(axis=1), 1, atol=1e-5)
    found = {v: sorted(seeds.unique()) for v, seeds in t.groupby('variant').seed}
    assert found == {v: n for v, n in s['seeds'].items() if n}
    if s['grid'].get('test_patients'): assert set(t.patient_id) == set(s['grid']['test_patients'])


def test_strata_are_reweighted():
    table = pd.DataFrame([(1, 'L', 1), (1, 'R', 1), (2, 'L', 0), (2, 'R', 2), (3, 'L', 0)],
                         columns=['patient_id', 'side', 'label'])
    strata = name_strata(table)
    assert strata.tolist() == ['Benign, Benign', 'Benign, Benign', 'Normal, Malignant',
                               'Malignant, Normal', 'Normal, none']
    others = pd.Series(['Benign, Benign', 'Normal, none', 'Normal, none', 'Normal, none'])
    weights = weigh(strata, others) # strata absent in the others have weight 0
    np.testing.assert_allclose(weights/weights.sum(), [.125, .125, 0, 0, .75])


def test_result_folders_are_documented():
    folders = [f for f in (ROOT/'results').iterdir() if f.is_dir()]
    assert folders and [f.name for f in folders if not (f/'settings.json').exists()] == []
    text = (ROOT/'results'/'README.md').read_text()
    assert [f.name for f in folders if f'`{f.name}/`' not in text] == []


# --- the checks themselves, on synthetic files

A_COMMIT = 'a1'*20
PAPERS = dict(accuracy=.8721, auc=.9676, pr_auc=.9458)


def write(folder, settings, **tables):
    folder.mkdir(parents=True)
    for name, t in tables.items(): (folder/f'{name}.csv').write_text(t.to_csv(index=False))
    (folder/'table.md').write_text(settings.get('caption', '') + '\n')
    (folder/'settings.json').write_text(json.dumps(settings))


def made_up(root):
    "Results of two splits, of five folds with three seeds, and of controls, all distinguishable."
    s = dict(commit=A_COMMIT, phantom=False, caption='made up',
             settings=dict(backbones='mobilenetv2_100,efficientnet_lite0'))
    every = (*LEAD, *MORE)
    repeats = pd.DataFrame([
        dict(variant='paper', seed=i, score=k, value=.8 + i/10, low=.7, high=.95, breasts=80 + i,
             patients=70) for i in (0, 1) for k in every])
    summary = pd.DataFrame([
        dict(variant='paper', score=k, published=PAPERS.get(k), value=.85, low=.75, high=.95,
             lowest=.8, highest=.9, seeds=2) for k in every])
    runs = pd.DataFrame({'variant': 'paper', 'seed': [0, 1], 'test breasts': [80, 81],
                         'women': [70, 70]})
    at = lambda variants, seeds, folds: pd.DataFrame([
        dict(variant=v, seed=i, fold=k, epoch=1)
        for v in variants for i in range(seeds) for k in range(folds)])
    one = dict(grid=dict(n_folds=0, variants=dict(paper={})), seeds=dict(paper=[0, 1]),
               variants=dict(paper=dict(settings={})))
    write(root/'results'/'replication', s | one | dict(n_runs=2, n_breasts=452, n_patients=261),
          scores=repeats, summary=summary, runs=runs, curves=at(['paper'], 2, 1))

    def write_folds(name, means, **tables):
        "Five folds with three seeds: variant -> mean of every score."
        scores = pd.DataFrame([
            dict(variant=v, score=k, value=m, low=m - .05, high=m + .05, breasts=452, patients=261,
                 seeds=3) for v, m in means.items() for k in every])
        grid = dict(n_folds=5, variants=dict.fromkeys(means, {}))
        facts = dict(grid=grid, seeds=dict.fromkeys(means, [0, 1, 2]),
                     variants=dict.fromkeys(means, dict(settings={})), n_runs=30, n_breasts=452,
                     n_patients=261)
        write(root/'results'/name, s | facts, scores=scores, curves=at(means, 3, 5), **tables)

    seeds = {f'seed {i}': .14 + i/100 for i in range(3)}
    differences = pd.DataFrame([
        dict(change='clinical -> regions', score='auc', value=.15, low=.1, high=.2, p=1e-6,
             p_holm=1e-6, se_women=.02, se_seeds=.01, seeds=3, **seeds)])
    write_folds('primary', dict(clinical=.78, regions=.93), differences=differences)
    shared = pd.DataFrame([dict(variant='both breasts', score=k, value=.825, breasts=452)
                           for k in every])
    write_folds('probe', {'single breast': .802, 'both breasts': .829}, shared=shared)
    controls = pd.DataFrame([
        dict(control=c, label='CM rows', split_unit='patient', score=k, value=v, low=.95, high=.97,
             breasts=566, patients=326, seeds=3)
        for c, v in (('mask shapes, CM', .96), (READER[0], .964)) for k in every if k != 'pr_auc'])
    counts = {'normal (CM rows)': 235, 'benign (CM rows)': 148, 'malignant (CM rows)': 183}
    facts = dict(commit=A_COMMIT, settings=dict(n_repeats=3),
                 files=dict(phantom=False, breasts=566, patients=326) | counts)
    write(root/'results'/'audit', facts, controls=controls)
    return root


def change(path, **new):
    path.write_text(json.dumps(json.loads(path.read_text()) | new))


def test_checks_pass_and_fail(tmp_path):
    made_up(tmp_path)
    at = {k: tmp_path/'results'/k/'settings.json'
          for k in ('replication', 'primary', 'probe', 'audit')}
    assert [find_odd(f) for f in at.values()] == [[], [], [], []]
    change(at['replication'], commit=A_COMMIT + '+changes')
    assert find_odd(at['replication']) == [f"commit '{A_COMMIT}+changes'"]
    change(at['replication'], commit=A_COMMIT, n_breasts=81)
    assert find_odd(at['replication']) == ['counts of paper']
    change(at['primary'], n_runs=29, seeds=dict(clinical=[0, 1], regions=[0, 1, 2]))
    assert find_odd(at['primary']) == ['29 runs', 'counts of clinical']
    change(at['audit'], weights='/work/weights/a.safetensors', commit=None)
    assert find_odd(at['audit']) == [
        'commit None', 'settings.json names /work/weights/a.safetensors']
    change(at['audit'], weights='', commit=A_COMMIT, settings=dict(n_repeats=2))
    assert find_odd(at['audit']) == ['2 repeats']


# --- the README

ROWS = [
    'the paper', "four streams, the paper's split by breast", 'four streams, outlines',
    'the same, outlines in training alone', 'four streams, no outlines (`clinical`)',
    'linear probe, no outlines, single breast', 'linear probe, no outlines, both breasts',
    'reference, no pixel: shapes of outlines', 'reference, no pixel: BI-RADS (circular)']


def test_lead_table_reads_each_row_from_its_folder(tmp_path):
    root = made_up(tmp_path)
    t, more = lead_table((root,)), lead_table((root,), MORE)
    assert [*t.index] == ROWS
    assert [*t.columns] == ['AUC-ROC', 'Accuracy', 'outlines at test', 'tested on']
    assert t['AUC-ROC'].tolist() == [
        '0.9676', '0.850 [0.750, 0.950]; 0.800 to 0.900', '0.930 [0.880, 0.980]', NOT_RUN,
        '0.780 [0.730, 0.830]', '0.802 [0.752, 0.852]', '0.829 [0.779, 0.879]',
        '0.960 [0.950, 0.970]', '0.964 [0.950, 0.970]']
    assert more['PR-AUC'].iloc[-1] == 'not scored'
    assert more['malignant or not: AUC-ROC'].iloc[0] == 'not reported'
    tested = t['tested on'].tolist()
    assert tested[1:3] == ['80 to 81 breasts, 70 patients, 2 splits', '452 breasts, 261 patients']
    assert tested[-1] == '566 breasts, 326 patients'
    assert phrase_outcome((tmp_path,)).endswith(
        ': 0.150 [0.100, 0.200] (higher; corrected p < 0.0001; each seed: 0.140, 0.150, 0.160).')

@pytest.mark.parametrize('absent, rows', [
    ('replication', [1]), ('primary', [2, 3, 4]), ('probe', [3, 5, 6]), ('audit', [3, 7, 8])])
def test_absent_folder_is_reported(tmp_path, absent, rows):
    shutil.rmtree(made_up(tmp_path)/'results'/absent)
    t = lead_table((tmp_path,))
    missing = [i for i in range(len(ROWS)) if (t.iloc[i] == NOT_RUN).all()]
    assert missing == sorted({3, *rows}) # no synthetic variant is without outlines at test
    assert 'not published yet' in phrase_outcome((tmp_path,)) or absent != 'primary'


def test_missing_control_is_rejected(tmp_path):
    path = made_up(tmp_path)/'results'/'audit'/'controls.csv'
    path.write_text(path.read_text().replace('mask shapes', 'other shapes'))
    with pytest.raises(ValueError, match=r"controls.csv has no control \('mask shapes, CM'"):
        lead_table((tmp_path, ))


def test_blocks_stand_between_their_marks(tmp_path):
    blocks, start, end = make_blocks(made_up(tmp_path)), '<!-- results -->', '<!-- /results -->'
    text = fill(f'before\n{start}\nold\n{end}\nafter', 'results', blocks['results'])
    assert text.startswith(f'before\n{start}\n\n| model') and 'old' not in text
    assert text.endswith(f'\n\n{end}\nafter')
    assert fill(text, 'results', blocks['results']) == text
    for odd in ('no mark', f'{end} {start}', f'{start} {start} {end}'):
        with pytest.raises(ValueError, match='README.md needs one <!-- results -->'):
            fill(odd, 'results', '')


def test_finding_follows_from_the_files(tmp_path):
    root = made_up(tmp_path)
    text = f'{phrase_finding((root,))} {phrase_references((root,))}'
    t = lead_table((root,))['AUC-ROC']
    for row in ROWS[7:]: assert t[row] in text
    for row in (ROWS[2], *ROWS[4:7]): assert t[row].split()[0] in text
    assert 'on the same 452 breasts' in text and 'without them 0.825 on the same' in text
    assert '0.150 [0.100, 0.200]' in text and t.iloc[0] in text and 'by about 0.11 over' in text
    scores = lead_scores((root,))
    assert f'{scores.value.iloc[0]:.3f}' == t[ROWS[7]].split()[0] and len(scores) == 6
    for name in ('audit', 'probe'):
        shutil.rmtree(root/'results'/name)
        assert phrase_finding((root,)) == phrase_references((root,)) == ''


def test_replication_is_compared_with_the_paper_score_by_score(tmp_path):
    root = made_up(tmp_path) # every mean is 0.85 [0.75, 0.95], every range 0.8 to 0.9
    assert phrase_replication((root,)) == (
        "Values of the paper's Table 1 inside the 95 % interval of our mean over splits: Accuracy "
        '0.8721, PR-AUC 0.9458; outside it: AUC-ROC 0.9676; above every one of our splits: AUC-ROC '
        '0.9676, PR-AUC 0.9458.')
    shutil.rmtree(root/'results'/'replication')
    assert phrase_replication((root,)) == ''


def test_readme_matches_the_files():
    text = (ROOT/'README.md').read_text()
    for mark, block in make_blocks(ROOT).items():
        assert fill(text, mark, block) == text, 'run python tools/make_readme.py'


def test_results_are_found_from_the_root_and_from_nbs(monkeypatch):
    for folder in (ROOT, ROOT/'nbs'):
        monkeypatch.chdir(folder)
        assert (find_results('audit')/'settings.json').exists()


# --- the chapters that read results

def simulate_grid(root, name):
    "Results of a grid of `configs/` with simulated predictions."
    grid = make_grid(read_grid_file(ROOT/'configs'/f'{name}.yaml'))
    def draw(k, seed):
        t = simulate(40, 0 if grid.n_folds else seed, signal=.5 + .1*k, model=9*seed + k)
        table = pd.DataFrame(t.prob, columns=PROBS).assign(label=t.label, patient_id=t.patient_id,
                                                           side=['L', 'R']*40)
        return table.assign(fold=np.arange(80)//2 % max(1, grid.n_folds))
    labels = enumerate([*grid.variants, *grid.rescore])
    drawn = {v: {s: draw(k, s) for s in grid.seeds} for k, v in labels}
    tables = fold_tables if grid.n_folds else repeat_tables
    read, numbers, _ = tables(grid, drawn, 20)
    curves = pd.DataFrame([
        dict(variant=v, seed=s, fold=0, epoch=e, train_loss=1., val_loss=1., train_accuracy=.5,
             val_accuracy=.5, selected=e == 1)
        for v in grid.variants for s in grid.seeds for e in (1, 2)])
    facts = dict(phantom=False, caption='simulated', seeds={v: list(s) for v, s in drawn.items()},
                 n_breasts=80, n_patients=40, command='a command', weights_source='a source',
                 grid=dict(n_folds=grid.n_folds, variants=grid.variants), settings=grid.base,
                 variants={v: dict(settings=change) for v, change in grid.variants.items()})
    numbers |= dict(curves=curves.set_index('variant'))
    write_tables(read, numbers, facts, root/'results'/name)


def run_cells(path, start):
    "Run a chapter's imports and the cells after a heading; return text and number of figures."
    cells = nbformat.read(path, 4).cells
    first = next(i for i, c in enumerate(cells) if c.source.startswith(start))
    imports = ('#| export', '#| hide\nimport')
    code = [c.source for i, c in enumerate(cells)
            if c.cell_type == 'code' and (i >= first or c.source.startswith(imports))]
    space, shown = {'__name__': 'chapter'}, []
    for source in code:
        if '#| export' not in source and re.search(r'\bmade\b|PHANTOM', source):
            continue # phantoms are made and drawn
        body = ast.parse(source).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), str(path), 'exec'), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(path), 'eval'), space)
            shown.append(getattr(value, 'data', value))
    figures = len(plt.get_fignums())
    plt.close('all')
    return '\n'.join(map(str, shown)), figures


READ = {
    'api/leakage.ladder': ('## With regions', ('primary', 'ladder', 'regions', 'pretraining')),
    'api/experiments.front_page': (
        '## The front page', ('replication', 'primary', 'ablations', 'pretraining'))}
VERDICTS = ('raises|lowers|has no demonstrated effect on|too few seeds|untested|supported|'
            'contradicted|undecided')


@pytest.mark.parametrize('chapter', READ)
@pytest.mark.parametrize('there', ['none', 'first', 'all'])
def test_chapters_show_published_results(tmp_path, monkeypatch, chapter, there):
    start, names = READ[chapter]
    for name in dict(none=(), first=names[:1], all=names)[there]: simulate_grid(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    text, figures = run_cells(ROOT/'nbs'/f'{chapter}.ipynb', start)
    absent = [n for n in names if f'`results/{n}` is not published yet' in text]
    if chapter == 'api/experiments.front_page':
        names = [n for n in names if n != 'primary'] # a column of a table there
    expected = dict(none=[*names], first=[*names[1:]], all=[])[there]
    assert [n for n in absent if n in names] == expected
    # two curves or a sentence in their place, changes
    assert figures == 2 + (there != 'none' and chapter != 'api/leakage.ladder')
    if there == 'all':
        assert 'simulated' in text and 'not finished' not in text
        assert 'not yet' not in text.replace(NOT_RUN, '')
        assert len(re.findall(VERDICTS, text)) >= 7


@pytest.mark.parametrize('chapter', READ)
def test_prose_contains_no_typed_result(chapter):
    "Prose has the limit for a claim, chance, and no other number with a decimal point."
    text = '\n'.join(c.source for c in nbformat.read(ROOT/'nbs'/f'{chapter}.ipynb', 4).cells
                     if c.cell_type == 'markdown')
    assert set(re.findall(r'\d\.\d+', re.sub(r'https?://\S+', '', text))) <= {'0.05', '0.5'}
