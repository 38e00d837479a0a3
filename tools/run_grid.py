"""Train every variant of a grid on the same folds and seeds, and write pooled out-of-fold results with paired differences.

usage: python tools/run_grid.py --grid configs/ladder.yaml --data FOLDER [--runs runs/ladder] [--out results/ladder]
                                [--n-jobs 1] [--seeds 0 1] [--folds 5] [--set KEY=VALUE ...] [--only-results]
Runs that are finished are kept, others go on where they were cut off. Nothing of a single patient is written to `--out`.
"""
import argparse
import sys
from pathlib import Path

import yaml

from cesm_nb.ladder import make_grid, plan_runs, run_grid, write_results

ROOT = Path(__file__).resolve().parent.parent


def main():
    "Train what is missing, then write the tables and the figure."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--grid', type=Path, required=True)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--runs', type=Path, help='default: runs/NAME OF THE GRID')
    ap.add_argument('--out', type=Path, help='default: results/NAME OF THE GRID')
    ap.add_argument('--n-jobs', type=int, default=1, help='runs at the same time')
    ap.add_argument('--seeds', type=int, nargs='*')
    ap.add_argument('--folds', type=int)
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='fields of TrainConfig, for all variants')
    ap.add_argument('--only-results', action='store_true', help='train nothing, tabulate what is there')
    a = ap.parse_args()
    content = yaml.safe_load(a.grid.read_text())
    content['base'] |= {k: yaml.safe_load(v) for k, _, v in (s.partition('=') for s in a.set)}
    content |= {k: v for k, v in [('seeds', a.seeds), ('n_folds', a.folds)] if v}
    runs, out = a.runs or ROOT/'runs'/a.grid.stem, a.out or ROOT/'results'/a.grid.stem
    try:
        grid = make_grid(content)
        plan = plan_runs(grid, a.data, runs)
        if not a.only_results: run_grid(grid, plan, a.n_jobs)
        write_results(grid, plan, out, f'{a.grid.name} on {a.data.name}')
    except (ValueError, OSError, FloatingPointError) as e: sys.exit(f'run_grid: {e}')
    print((out/'scores.md').read_text(), (out/'differences.md').read_text(), sep='\n')


if __name__ == '__main__': main()
