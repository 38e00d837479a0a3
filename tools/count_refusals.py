"""Count how many test breasts of runs are rejected when they are checked like cases, and why.

    python tools/count_refusals.py RUN [RUN ...] [--out results/false_refusals.csv]

These breasts are in distribution, so each rejection is a false one. Runs with the same settings,
such as the folds of a cross-validation, are pooled. --out adds the rows of this model and data to
the file, in place of earlier ones: counts of breasts and patients, and nothing of a single one."""
import argparse
from pathlib import Path

import pandas as pd

KEY = ['data', 'model', 'backbones', 'image_size'] # columns that tell models and data apart


def describe(runs, table):
    "The table with leading columns: data, model, size, number of runs."
    from cesm_nb.core.runs import read_config
    kinds = set()
    for c in map(read_config, runs):
        data, s = ('real', 'phantom')[c['phantom']], c['settings']
        kinds.add((data, s.get('model') or 'four_stream', s['backbones'], s['image_size']))
    if len(kinds) > 1:
        raise SystemExit(f'the runs are of several kinds, {sorted(kinds)}: name those of one')
    front = pd.DataFrame([dict(zip(KEY, kinds.pop()), runs=len(runs))]*len(table))
    rest = table.rename_axis(table.index.name or 'reason').reset_index()
    return pd.concat([front, rest], axis=1).round(4)


def write(found, path):
    "Write rows into the file in place of earlier ones of the same model and data."
    if path.exists():
        old = pd.read_csv(path)
        key = lambda table: table[KEY].astype(str).agg('|'.join, axis=1)
        found = pd.concat([old[~key(old).isin(key(found))], found])
    found.to_csv(path, index=False)


def main():
    "Print the counts, and write them."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('runs', nargs='+', type=Path, help='run folders, their tensors in place')
    ap.add_argument('--out', type=Path, help='CSV file')
    o = ap.parse_args()
    from cesm_nb.cases.ood import false_refusals
    found = describe(o.runs, false_refusals(o.runs))
    print(found.to_string(index=False))
    if o.out: write(found, o.out)


if __name__ == '__main__': main()
