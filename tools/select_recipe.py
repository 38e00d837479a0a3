"""Select the recipe of the probe on all patients, as a nested grid did on those of each outer fold.

usage: python tools/select_recipe.py configs/probe_search.yaml DATA RUNS [--set KEY=VALUE ...]
RUNS is the folder that the grid was run in, whose tensors and features are used. For each list
under `select`, prints the mean macro AUC of each recipe on the inner folds of all patients, and the
simplest within one standard error of the best, which configs/best.yaml holds.
"""
import argparse
from pathlib import Path

from cesm_nb.experiments.grid import plan_runs
from cesm_nb.experiments.nested import deal_inner, list_selections
from cesm_nb.experiments.reproduce import read_changes
from cesm_nb.experiments.run import read_grid
from cesm_nb.probe.selection import score_recipes, select_recipe
from cesm_nb.tensorize import read_manifest, tensorize


def main():
    "Print scores and choice."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('grid', type=Path)
    ap.add_argument('data', type=Path)
    ap.add_argument('runs', type=Path)
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
    a = ap.parse_args()
    grid = read_grid(a.grid, read_changes(a.set), (0,), 0)
    plan = plan_runs(grid, a.data.resolve(), a.runs.resolve())
    first = list_selections(grid.select, grid.n_inner, plan)[0]
    for cfg in {c.tensor_dir: c for c in first.recipes.values()}.values(): tensorize(cfg)
    manifest = read_manifest(next(iter(first.recipes.values())).tensor_dir)
    every = manifest.assign(split='train')
    scores = score_recipes(first.recipes, deal_inner(manifest, every, grid.n_inner))
    for name, recipes in grid.select.items():
        own = scores.loc[recipes]
        chosen, best, limit = select_recipe(own)
        print(f'\n{name}: {chosen} (best: {best}; lowest mean that could be selected: {limit:.4f})')
        print(own.mean(axis=1).round(4).to_string())


if __name__ == '__main__': main()
