"""Write what the README and the first page take from the files in `results/`: the finding, its figure, and the table.

usage: python tools/make_readme.py [--check]
`--check` writes nothing and fails where the README differs from the files. Give the command after every change of
`results/replication`, `results/primary`, `results/best_grid`, `results/confirmation` or `results/audit`; a row whose folder is
absent says `not yet run`.
"""
import argparse
import sys
from pathlib import Path

from cesm_nb.reporting.figures import save_figure
from cesm_nb.experiments.front_page import (lead_scores, lead_table, plot_lead,
                                            phrase_confirmation, phrase_finding, phrase_outcome,
                                            phrase_references)
from cesm_nb.reporting.tables import to_markdown

ROOT = Path(__file__).resolve().parent.parent
MARKS = ('finding', 'results')


def make_blocks(
    root:Path, # folder with `results/`
) -> dict: # mark -> what stands between its two comments
    "Word the finding and its confirmation; put the primary outcome under the table."
    found = '\n\n'.join(
        filter(None, (phrase_finding((root, )), phrase_confirmation(
            (root, )), phrase_references((root, )))))
    table = to_markdown(lead_table((root, )))
    return dict(finding=f'\n\n{found}\n\n',
                results=f'\n\n{table}\n\n{phrase_outcome((root, ))}\n\n')


def fill(
    text:str, # the README
    mark:str, # one of `MARKS`
    block:str, # from `make_blocks`
) -> str: # with the block between its comments
    "Replace what stands between the comments; raise ValueError where they are not there once each, in this order."
    start, end = f'<!-- {mark} -->', f'<!-- /{mark} -->'
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(
            f'README.md needs one {start} and one {end} after it, to put the {mark} between them')
    return text[:text.index(start) + len(start)] + block + text[text.index(end):]


def main():
    "Write, or compare."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true',
                    help='write nothing; fail where the README differs from the files')
    a, path = ap.parse_args(), ROOT/'README.md'
    try:
        there = text = path.read_text()
        for mark, block in make_blocks(ROOT).items(): text = fill(text, mark, block)
    except (ValueError, OSError) as e: sys.exit(f'make_readme: {e}')
    if not a.check:
        save_figure(plot_lead(lead_scores((ROOT, ))).figure, ROOT/'results'/'lead', False)
    if there == text: return
    if a.check:
        sys.exit('make_readme: README.md differs from results/: run python tools/make_readme.py')
    path.write_text(text)


if __name__ == '__main__': main()
