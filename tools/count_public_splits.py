"""Count, for public splits of CDD-CESM, the test patients that are in the training part too.

    python tools/count_public_splits.py DATA [--list NAME=FILE ...] [--out CSV]

NAME is one of `PUBLIC_SPLITS` in leakage.split_audit, FILE its list of images; the split that is
defined by a rule needs none. The table, such as results/public_splits.csv, holds counts, and
nothing of a single patient."""
import argparse
from pathlib import Path

import pandas as pd

SEEDS = range(1, 100) # those of the rule


def count(images, lists):
    "A row for each split: its source and its counts."
    from cesm_nb.leakage.split_audit import (PUBLIC_SPLITS, audit_split, count_shared, read_foreign,
                                             split_rows)
    odd = sorted(set(lists) - set(PUBLIC_SPLITS))
    if odd: raise SystemExit(f'unknown splits {odd}: expected {sorted(PUBLIC_SPLITS)}')
    parts = {k: [read_foreign(f)] for k, f in lists.items()}
    parts['CDD-CESM helper'] = (split_rows(images, s) for s in SEEDS)
    rows = {}
    for k, some in parts.items():
        source = dict(zip(('repository', 'path', 'commit'), PUBLIC_SPLITS[k]))
        rows[k] = source | count_shared([audit_split(p) for p in some])
    return pd.DataFrame.from_dict(rows, orient='index').rename_axis('split').round(4)


def main():
    "Print the counts, and write them."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('data', type=Path, help='annotation sheet, or the folder that holds it')
    ap.add_argument('--list', action='append', default=[], metavar='NAME=FILE',
                    help='a split that is a list')
    ap.add_argument('--out', type=Path, help='CSV file')
    o = ap.parse_args()
    from cesm_nb.data import read_dataset
    lists = dict(k.split('=', 1) for k in o.list)
    found = count(read_dataset(o.data, with_images=False).images, lists)
    print(found.to_string())
    if o.out: found.to_csv(o.out)


if __name__ == '__main__': main()
