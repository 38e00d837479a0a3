"""Print how much selection flatters where features hold no signal: nested score and naive best.

Run: python tools/simulate_selection.py [--seeds 10]
"""
import argparse

import pandas as pd
from tqdm import tqdm

from cesm_nb.probe.selection import simulate_selection


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=10, help='deals of features, labels and folds')
    parser.add_argument('--recipes', type=int, default=24, help='recipes to select from')
    args = parser.parse_args()
    rows = [simulate_selection(seed, n_recipes=args.recipes)
            for seed in tqdm(range(args.seeds), 'simulation', unit='seed')]
    table = pd.DataFrame(rows).rename_axis('seed')
    print(table.round(3).to_string())
    mean, spread = table.mean(), table.std(ddof=1)
    print(f'macro AUC without signal, {args.recipes} recipes, mean of {args.seeds} seeds '
          f'(standard deviation): nested {mean.nested:.3f} ({spread.nested:.3f}), '
          f'best recipe on the outer folds {mean.best:.3f} ({spread.best:.3f})')


if __name__ == '__main__': main()
