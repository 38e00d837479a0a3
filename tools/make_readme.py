"""Write the parts of the README and the first page that come from `results/`: finding and tables.

usage: python tools/make_readme.py [--check]
`--check` writes nothing and fails if the README differs from the files. Run it after each change of
`results/replication`, `results/primary`, `results/best_grid`, `results/confirmation` or
`results/audit`; a row without its folder reads `not yet run`.
"""
import argparse
import sys
from pathlib import Path

from cesm_nb.reporting.figures import save_figure
from cesm_nb.experiments.front_page import (
    lead_scores, lead_table, plot_lead, phrase_confirmation, phrase_finding, phrase_outcome)
from cesm_nb.reporting.tables import to_markdown

ROOT = Path(__file__).resolve().parent.parent
MARKS = ('finding', 'results')


def make_blocks(
    root:Path, # folder with `results/`
) -> dict: # mark -> what stands between its two comments
    "Phrase the finding and its confirmation; put the primary outcome under the table."
    roots = (root,)
    phrases = (phrase_finding, phrase_confirmation)
    found = '\n\n'.join(filter(None, (phrase(roots) for phrase in phrases)))
    table = to_markdown(lead_table(roots))
    return dict(finding=f'\n\n{found}\n\n',
                results=f'\n\n{table}\n\n{phrase_outcome(roots)}\n\n')


def fill(
    text:str, # the README
    mark:str, # one of `MARKS`
    block:str, # from `make_blocks`
) -> str: # with the block between its comments
    "Replace the text between the comments; raise ValueError without one of each, in this order."
    start, end = f'<!-- {mark} -->', f'<!-- /{mark} -->'
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f'README.md needs one {start} and one {end} after it, to put the {mark} '
                         'between them')
    return text[:text.index(start) + len(start)] + block + text[text.index(end):]


def main():
    "Write, or compare."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true',
                    help='write nothing; fail if the README differs from the files')
    a, path = ap.parse_args(), ROOT/'README.md'
    try:
        stored = text = path.read_text()
        for mark, block in make_blocks(ROOT).items(): text = fill(text, mark, block)
    except (ValueError, OSError) as e: sys.exit(f'make_readme: {e}')
    if not a.check:
        save_figure(plot_lead(lead_scores((ROOT,))).figure, ROOT/'results'/'lead', False)
    if stored == text: return
    if a.check:
        sys.exit('make_readme: README.md differs from results/: run python tools/make_readme.py')
    path.write_text(text)


if __name__ == '__main__': main()
