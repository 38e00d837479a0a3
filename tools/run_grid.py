"""Train every variant of a grid on the same folds and seeds, and write pooled out-of-fold results with paired differences.

usage: python tools/run_grid.py --grid configs/ladder.yaml [...] --data FOLDER [--runs runs/grids] [--out results]
                                [--n-jobs 1 | --dask ADDRESS] [--seeds 0 1] [--folds 5] [--set KEY=VALUE ...]
                                [--only-results] [--without-papermill]
Papermill executes the section *Run* of chapter 04 once a run; the executed notebook stays in the run folder. Runs that are
finished are kept, also those of another grid; others go on where they were cut off. Several grids go seed by seed.
Nothing of a single patient is written to `--out`, where each grid has a folder of its name.
"""
import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

import joblib
import yaml

from cesm_nb.grids import make_grid, plan_runs, run_grid, write_results

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT/'nbs'/'04_train_colab_t4.ipynb'


def read_grid(
    path:Path, # YAML file
    a:argparse.Namespace, # the command line
): # `Grid`
    "Read a grid with what the command line changes."
    content = yaml.safe_load(path.read_text())
    content['base'] |= {k: yaml.safe_load(v) for k, _, v in (s.partition('=') for s in a.set)}
    return make_grid(content | {k: v for k, v in [('seeds', a.seeds), ('n_folds', a.folds)] if v})


def run(
    grids:dict, # name -> `Grid`
    a:argparse.Namespace, # the command line
):
    "Train what is missing, seed by seed; then write the tables and the figures."
    plans = {name: plan_runs(g, a.data, a.runs) for name, g in grids.items()}
    with ExitStack() as stack:
        if a.dask:
            from distributed import Client # of the extra `dask`
            stack.enter_context(Client(a.dask))
            stack.enter_context(joblib.parallel_config('dask'))
        for seed in sorted({s for g in grids.values() for s in g.seeds}):
            for name, g in grids.items():
                part = [p for p in plans[name] if p.cfg.seed == seed]
                if not part or a.only_results: continue
                print(f'--- {name}, seed {seed}', flush=True)
                run_grid(g, part, -1 if a.dask else a.n_jobs, '' if a.without_papermill else NOTEBOOK)
    changes = f" --set {' '.join(a.set)}" if a.set else ''
    for name, g in grids.items():
        command = f"python tools/run_grid.py --grid configs/{name}.yaml --data {a.data.name} --seeds {' '.join(map(str, g.seeds))}{changes}"
        write_results(g, plans[name], a.out/name, f'{name} on {a.data.name}', command)
        print((a.out/name/'table.md').read_text(), flush=True)


def main():
    "Read the command line; say in a sentence what cannot be done."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--grid', type=Path, nargs='+', required=True)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--runs', type=Path, default=ROOT/'runs'/'grids', help='grids that share it share their runs')
    ap.add_argument('--out', type=Path, default=ROOT/'results')
    ap.add_argument('--n-jobs', type=int, default=1, help='runs at the same time')
    ap.add_argument('--dask', default='', metavar='ADDRESS', help='scheduler of a cluster that sees the same folders')
    ap.add_argument('--seeds', type=int, nargs='*')
    ap.add_argument('--folds', type=int)
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='fields of TrainConfig, for all variants')
    ap.add_argument('--only-results', action='store_true', help='train nothing, tabulate what is there')
    ap.add_argument('--without-papermill', action='store_true', help='call the training directly: seconds less a run')
    a = ap.parse_args()
    logging.getLogger('papermill').setLevel(logging.ERROR)
    a.runs = a.runs.resolve() # a notebook runs elsewhere
    try: run({f.stem: read_grid(f, a) for f in a.grid}, a)
    except (ValueError, OSError, FloatingPointError) as e: sys.exit(f'run_grid: {e}')


if __name__ == '__main__': main()
