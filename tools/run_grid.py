"""Train every variant of a grid on the same folds and seeds, and write pooled out-of-fold results with paired differences.

usage: python tools/run_grid.py --grid configs/primary.yaml [...] --data FOLDER [--runs runs/grids] [--out results]
                                [--n-jobs 1 | --dask ADDRESS] [--seeds 0 1] [--folds 5] [--set KEY=VALUE ...]
                                [--only-results] [--without-papermill]
Papermill executes the section *Run* of chapter 04 once per run; the executed notebook stays in the run folder. Runs that are
finished are kept, also those of another grid; others go on where they were cut off. One queue holds all runs of all grids,
seed by seed, so that --n-jobs are busy until the last; grids that share a run train it once. With one job a run is trained in
this process; with several, a worker ends within about a second of this process, whatever ends it, and what it had started
goes on when the command is given again. Workers of a cluster (--dask) are not this process's: stop them there.
`--only-results` trains nothing and publishes the seeds that are complete, also while another process trains.
Results on real images need runs made at one commit with nothing changed: train in a worktree of its own, and write with
`--out` into another, since new results are a change too. Nothing of a single patient is written to `--out`, where each grid
has a folder of its name.
"""
import argparse
import logging
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import joblib
import yaml

from cesm_nb.grids import join_jobs, list_jobs, make_grid, plan_runs, run_jobs
from cesm_nb.results import write_results

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT/'nbs'/'04_train_colab_t4.ipynb'


def read_changes(
    words:list, # KEY=VALUE each
) -> dict: # KEY -> value, with the type it has in YAML
    "Read what `--set` changes; raise ValueError where a word has no '='."
    out = {}
    for word in words:
        key, equals, text = word.partition('=')
        if not equals: raise ValueError(f'--set {word!r} has no =: write KEY=VALUE')
        number = re.fullmatch(r'[-+]?[\d.]+e[-+]?\d+', text) # YAML takes 1e-4 for text
        out[key] = float(text) if number else yaml.safe_load(text)
    return out


def read_grid(
    path:Path, # YAML file
    a:argparse.Namespace, # the command line
): # `Grid`
    "Read a grid with what the command line changes; other backbones replace the file's own wherever these stand in it."
    text, changes = path.read_text(), read_changes(a.set)
    old = str(yaml.safe_load(text)['base'].get('backbones') or '').split(',')
    new = str(changes.get('backbones') or '').split(',')
    if len(old) == len(new) and all(old + new):
        for i, name in enumerate(old): text = re.sub(rf'\b{re.escape(name)}\b', f'<{i}>', text)
        for i, name in enumerate(new): text = text.replace(f'<{i}>', name)
    content = yaml.safe_load(text)
    content['base'] |= changes
    return make_grid(content | {k: v for k, v in [('seeds', a.seeds), ('n_folds', a.folds)] if v})


def say_command(
    name:str, # of the grid
    seeds:tuple, # of the grid
    a:argparse.Namespace, # the command line
) -> str: # the command, without local paths
    "Write down what makes the results."
    changes = [f'{k}={Path(v).name if k == "weights_dir" else v}' for k, v in (s.split('=', 1) for s in a.set)]
    words = ['python tools/run_grid.py --grid', f'configs/{name}.yaml', '--data', a.data.name, '--seeds', *map(str, seeds)]
    if a.folds: words += ['--folds', str(a.folds)]
    return ' '.join(words + (['--set', *changes] if changes else []))


def queue_jobs(
    grids:dict, # name -> `Grid`
    plans:dict, # name -> from `plan_runs`
) -> list: # from `join_jobs`
    "Put what is missing in one queue: the first seed of all grids, then the next."
    out = []
    for seed in sorted({s for g in grids.values() for s in g.seeds}):
        for name, g in grids.items():
            part = [p for p in plans[name] if p.cfg.seed == seed]
            if part: out += list_jobs(g, part)
    return join_jobs(out)


def train(
    jobs:list, # from `queue_jobs`
    a:argparse.Namespace, # the command line
):
    "Make what is missing."
    with ExitStack() as stack:
        if a.dask:
            from distributed import Client # of the extra `dask`
            stack.enter_context(Client(a.dask))
            stack.enter_context(joblib.parallel_config('dask'))
        run_jobs(jobs, -1 if a.dask else a.n_jobs, '' if a.without_papermill else NOTEBOOK)


def publish(
    grids:dict, # name -> `Grid`
    plans:dict, # name -> from `plan_runs`
    a:argparse.Namespace, # the command line
):
    "Write the results of each grid; raise ValueError in the end where some could not be."
    refused = []
    for name, g in grids.items():
        title, command = f'{name} on {a.data.name}', say_command(name, g.seeds, a)
        try: write_results(g, plans[name], a.out/name, title, command)
        except ValueError as e: refused.append(f'{name}: {e}')
        else: print((a.out/name/'table.md').read_text(), flush=True)
    if refused: raise ValueError('\n'.join(refused))


def main():
    "Read the command line; say in a sentence what cannot be done."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--grid', type=Path, nargs='+', required=True)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--runs', type=Path, default=ROOT/'runs'/'grids', help='grids that share it share their runs')
    ap.add_argument('--out', type=Path, default=ROOT/'results')
    ap.add_argument('--n-jobs', type=int, default=1, help='runs at the same time, which share the cores')
    ap.add_argument('--dask', default='', metavar='ADDRESS', help='scheduler of a cluster that sees the same folders')
    ap.add_argument('--seeds', type=int, nargs='*')
    ap.add_argument('--folds', type=int)
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='fields of TrainConfig, for all variants')
    ap.add_argument('--only-results', action='store_true', help='train nothing, publish the seeds that are complete')
    ap.add_argument('--without-papermill', action='store_true', help='call the training directly: seconds less per run')
    a = ap.parse_args()
    logging.getLogger('papermill').setLevel(logging.ERROR)
    a.runs, a.data = a.runs.resolve(), a.data.resolve() # a notebook runs elsewhere
    try:
        grids = {f.stem: read_grid(f, a) for f in a.grid}
        plans = {name: plan_runs(g, a.data, a.runs) for name, g in grids.items()}
        if not a.only_results: train(queue_jobs(grids, plans), a)
        publish(grids, plans, a)
    except (ValueError, OSError, FloatingPointError) as e: sys.exit(f'run_grid: {e}')


if __name__ == '__main__': main()
