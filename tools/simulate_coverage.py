"""Estimate the coverage of the 95 % intervals on simulated breasts, for `results/coverage.csv`.

usage: python tools/simulate_coverage.py [--only retrained] [--sets 500] [--repeated-sets 2000]
           [--retrained-sets 500] [--patients 43 150 283] [--seeds 3 5] [--draws 1000] [--jobs 1]
           [--out results/coverage.csv]
First single trainings, with resampling of patients or (wrongly) of breasts; then the mean over
trainings from several seeds and the paired difference of two models, by `repeated_interval`, on
more sets since the margins are narrow; last, cross-validations in which a model is trained on each
fold. Takes half an hour of one core for the first two, another for the last; `--only` replaces the
rows of one of the three. These numbers come from no image and no patient.
"""
import argparse
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from cesm_nb.stats.coverage import coverage, coverage_repeated, coverage_retrained

ROOT = Path(__file__).resolve().parent.parent
NAMES = ('accuracy', 'balanced_accuracy', 'f1', 'auc', 'pr_auc', 'auc_malignant',
         'sensitivity_malignant', 'specificity_malignant', 'auc_abnormal', 'sensitivity_abnormal',
         'specificity_abnormal', 'brier', 'log_loss')
LINE = ('calibration_slope', 'calibration_intercept') # a fit for every draw: fewer draws
REPEATED = ('accuracy', 'auc')
RETRAINED = [ # patients, seeds, whether each seed deals other folds, share of the sets
    (260, 3, True, 1), (150, 3, True, 1), (280, 3, True, 1), (260, 3, False, .6)]
SIMPLE = 'predictions drawn'
DEALT, SAME = 'trained, folds dealt anew', 'trained, same folds and other weights'
COLUMNS = (
    'part score kind design method drawn seeds seed_sd truth coverage women_only width sd_ratio '
    'sets patients breasts draws').split()


def single(a, n):
    "One training: patients resampled, breasts resampled."
    score, line = (coverage(a.sets, n, draws, names).assign(draws=draws)
                   for draws, names in [(a.draws, NAMES), (200, LINE)])
    return pd.concat([score, line]).reset_index().assign(
        part='single', design=SIMPLE, kind='score', seeds=1, sets=a.sets, patients=n, breasts=2*n)


def repeated(a, n, seeds, spread):
    "Several trainings: patients and seeds resampled."
    found = coverage_repeated(a.repeated_sets, n, seeds, spread, 200, REPEATED).reset_index()
    drawn = 'women and seeds' if seeds > 1 else 'women' # as in the file
    return found.assign(part='repeated', design=SIMPLE, drawn=drawn, seeds=seeds,
                        sets=a.repeated_sets, patients=n, breasts=2*n, draws=200)


def retrained(a, n, seeds, dealt, share):
    "Cross-validations with training: patients resampled, folds dealt by each seed or once."
    sets = round(share*a.retrained_sets)
    found = coverage_retrained(sets, n, 5, seeds, dealt, 100).reset_index()
    design, drawn = DEALT if dealt else SAME, 'patients and seeds'
    return found.assign(part='retrained', design=design, drawn=drawn, seeds=seeds, sets=sets,
                        patients=n, breasts=2*n, draws=100)


def main():
    "Simulate, print, and write after each task."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--sets', type=int, default=500)
    ap.add_argument('--repeated-sets', type=int, default=2000, help='sets with several trainings')
    ap.add_argument('--patients', type=int, nargs='+', default=[43, 150, 283],
                    help='patients in a set, two breasts each: a test set of the paper, a larger '
                    'one, all of CDD-CESM')
    ap.add_argument('--seeds', type=int, nargs='+', default=[3, 5], help='trainings of each set')
    ap.add_argument('--retrained-sets', type=int, default=500,
                    help='sets on which models are trained, fewer where folds stay the same')
    ap.add_argument('--only', choices=['single', 'repeated', 'retrained'],
                    help='make only these rows, and keep the others of --out')
    ap.add_argument('--draws', type=int, default=1000)
    ap.add_argument('--jobs', type=int, default=1, help='processes')
    ap.add_argument('--out', type=Path, default=ROOT/'results'/'coverage.csv')
    a = ap.parse_args()
    designs = [(n, k, .12) for n in a.patients for k in a.seeds]
    designs += [(n, k, 0.) for n in a.patients[1:2] for k in (1, *a.seeds)] # seeds of no effect
    parts = dict(
        single=[delayed(single)(a, n) for n in a.patients],
        repeated=[delayed(repeated)(a, *design) for design in designs],
        retrained=[delayed(retrained)(a, *design) for design in RETRAINED])
    tasks = parts[a.only] if a.only else sum(parts.values(), [])
    before = pd.read_csv(a.out) if a.only and a.out.exists() else pd.DataFrame(columns=COLUMNS)
    table = before[before.part != a.only]
    a.out.parent.mkdir(parents=True, exist_ok=True)
    for found in Parallel(a.jobs, return_as='generator')(tasks):
        table = pd.concat([table, found.reindex(columns=COLUMNS).round(4)], ignore_index=True)
        table.to_csv(a.out, index=False)
    print(table.to_string(index=False))


if __name__ == '__main__': main()
