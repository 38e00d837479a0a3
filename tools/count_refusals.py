"""Judge the test breasts of runs as cases are judged, and count how many of these familiar breasts are refused, and why.

    python tools/count_refusals.py RUN [RUN ...] [--out results/false_refusals.csv]

Several runs of one setting, such as the folds of a cross-validation, count together. With --out the rows of that model and data are
written, or written anew, among those of others: counts of breasts and women, and nothing of a single one."""
import argparse
from pathlib import Path

import pandas as pd


def describe(runs, table):
    "The table with what it is about: data, model, size, number of runs."
    from cesm_nb.core.runs import read_config
    configs = [read_config(r) for r in runs]
    about = {(('real', 'phantom')[c['phantom']], c['settings'].get('model')
              or 'four_stream', c['settings']['backbones'], c['settings']['image_size'])
             for c in configs}
    if len(about) > 1:
        raise SystemExit(f'the runs are of several kinds, {sorted(about)}: name those of one')
    names = ('data', 'model', 'backbones', 'image_size')
    front = pd.DataFrame([dict(zip(names, about.pop()), runs=len(runs))]*len(table))
    return pd.concat([front, table.rename_axis(table.index.name or 'reason').reset_index()],
                     axis=1).round(4)


def write(found, path):
    "Put rows into the file in place of older ones about the same."
    key = ['data', 'model', 'backbones', 'image_size']
    if path.exists():
        old = pd.read_csv(path)
        same = old[key].astype(str).agg('|'.join,
                                        axis=1).isin(found[key].astype(str).agg('|'.join, axis=1))
        found = pd.concat([old[~same], found])
    found.to_csv(path, index=False)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('runs', nargs='+', type=Path, help='run folders, their tensors in place')
    ap.add_argument('--out', type=Path, help='CSV file')
    o = ap.parse_args()
    from cesm_nb.cases.ood import false_refusals
    found = describe(o.runs, false_refusals(o.runs))
    print(found.to_string(index=False))
    if o.out: write(found, o.out)


if __name__ == '__main__': main()
