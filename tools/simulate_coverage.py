"""Count how often the 95 % intervals hold the truth, on simulated breasts; the result is kept in `results/coverage.csv`.

usage: python tools/simulate_coverage.py [--sets 500] [--patients 43 150 283] [--draws 1000] [--out results/coverage.csv]
About two minutes on one core. No image and no patient is behind these numbers.
"""
import argparse
from pathlib import Path

import pandas as pd

from cesm_nb.stats import coverage

ROOT = Path(__file__).resolve().parent.parent
NAMES = ('accuracy', 'balanced_accuracy', 'f1', 'auc', 'auc_malignant', 'pr_auc', 'sensitivity_malignant', 'specificity_malignant', 'brier', 'log_loss')


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--sets', type=int, default=500)
    ap.add_argument('--patients', type=int, nargs='+', default=[43, 150, 283],
                    help='women in a set, two breasts each: a test set of the paper, a larger one, all of CDD-CESM')
    ap.add_argument('--draws', type=int, default=1000)
    ap.add_argument('--out', type=Path, default=ROOT/'results'/'coverage.csv')
    a = ap.parse_args()
    found = pd.concat([
        coverage(a.sets, n, a.draws, NAMES).assign(sets=a.sets, patients=n, breasts=2*n, draws=a.draws) for n in a.patients])
    a.out.parent.mkdir(parents=True, exist_ok=True)
    found.round(4).to_csv(a.out)
    print(found.round(4).to_string())


if __name__ == '__main__': main()
