"""Write the display tables in `results/` again from the numbers beside them, without data or runs.

usage: python tools/render_tables.py
Run it after a change of how numbers are written; then `python tools/make_crates.py`."""
from pathlib import Path

import pandas as pd

from cesm_nb.experiments.aggregate import (
    binary_table, change_table, grid_table, repeats_table, summary_table)
from cesm_nb.reporting.tables import write_table

ROOT = Path(__file__).resolve().parent.parent


def render(
    folder, # of a published grid or audit
): # dict, name -> (table, caption)
    "Display tables of a folder from its CSV files of numbers."
    read = lambda name, n=1: pd.read_csv(folder/f'{name}.csv', index_col=[*range(n)])
    caption = lambda name: (folder/f'{name}.md').read_text().split('\n')[0].replace(r'\$', '$')
    if (folder/'summary.csv').exists():
        made = dict(table=summary_table(read('summary', 2)), runs=repeats_table(read('scores', 2)))
    elif (folder/'differences.csv').exists():
        scores, differences = read('scores'), read('differences')
        made = dict(table=grid_table(scores, differences), binary=binary_table(scores))
        if len(differences): made['changes'] = change_table(differences)
    else: made = {}
    if (folder/'controls.md').exists(): made['controls'] = read('controls')
    if (path := folder/'confusion.csv').exists():
        made['confusion'] = pd.read_csv(path, index_col=0, dtype=str)
    return {k: (t, caption(k)) for k, t in made.items()}


def main():
    for settings in sorted((ROOT/'results').glob('*/settings.json')):
        for name, (table, caption) in render(settings.parent).items():
            write_table(table, settings.parent/name, caption)


if __name__ == '__main__': main()
