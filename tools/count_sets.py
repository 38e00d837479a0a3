"""Count conformal sets of one, two and three classes, beside how often they hold the true class.

    python tools/count_sets.py RUN [RUN ...] [--out results/sets.csv]

Breasts are predicted by themselves, like cases, and in pairs if the model was trained on pairs.
Runs with the same settings, such as the folds of a cross-validation, are joined as in
cases.conformal: the limits applied to a patient come from other patients. --out adds the rows of
this model and data to the file, in place of earlier ones: counts, nothing of a single patient."""
import argparse
from pathlib import Path

import pandas as pd
from count_refusals import describe, write

from cesm_nb.cases.subgroups import predict_held, read_own
from cesm_nb.cases.prepare import open_member
from cesm_nb.stats.calibration import heat
from cesm_nb.core.terms import PROBS
from cesm_nb.core.runs import Run
from cesm_nb.cases.conformal import describe_certainty, join_members


def calibrate(table):
    "Predictions after temperature scaling, without those on the training set."
    t = table[table.split != 'train'].copy()
    t[PROBS] = heat(t[PROBS].to_numpy(), describe_certainty(t)['temperature'])
    return t


def summarise(tables):
    "One row about the joined predictions of runs."
    joined, _ = join_members([calibrate(t) for t in tables])
    c, ends = describe_certainty(joined), ('', '_low', '_high')
    out = dict(breasts=c['n_test'], patients=c['n_test_women'])
    out |= {f'coverage{e}': v for e, v in zip(ends, c['covered'])}
    out |= dict(zip(('one_class', 'two_classes', 'three_classes'), c['sizes']))
    return out | {f'{k}{e}': v for k, three in c['scores'].items() for e, v in zip(ends, three)}


def count(runs):
    "A row for single breasts, and one for pairs if the model was trained on pairs."
    members = [open_member(r) for r in runs]
    rows = {'each breast by itself': summarise([predict_held(m, read_own(m)) for m in members])}
    if all(m.net.settings.get('other_breast', 'none') != 'none' for m in members):
        rows['pairs of breasts'] = summarise([Run.open(r).predictions for r in runs])
    return pd.DataFrame(rows).T.rename_axis('predicted').convert_dtypes()


def main():
    "Print the counts, and write them."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('runs', nargs='+', type=Path, help='run folders, their tensors in place')
    ap.add_argument('--out', type=Path, help='CSV file')
    o = ap.parse_args()
    found = describe(o.runs, count(o.runs))
    print(found.to_string(index=False))
    if o.out: write(found, o.out)


if __name__ == '__main__': main()
