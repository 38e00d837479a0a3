"""Write the README's table of results between `<!-- results -->` and `<!-- /results -->`, from the files in `results/`.

usage: python tools/make_readme.py [--check]
`--check` writes nothing and fails where the README differs from the files. Give the command after every change of
`results/replication`, `results/primary` or `results/audit`; a column whose folder is absent says `not yet run`.
"""
import argparse
import sys
from pathlib import Path

from cesm_nb.findings import lead_table, say_outcome, say_reach
from cesm_nb.tables import to_markdown

ROOT = Path(__file__).resolve().parent.parent
START, END = '<!-- results -->', '<!-- /results -->'


def make_block(
    root:Path, # folder with `results/`
) -> str: # what stands between the markers
    "Put the table, the primary outcome and what it could have found under each other."
    words = ' '.join(filter(None, (say_outcome((root,)), say_reach((root,)))))
    return f'\n\n{to_markdown(lead_table((root,)))}\n\n{words}\n\n'


def fill(
    text:str, # the README
    block:str, # from `make_block`
) -> str: # with the block between its markers
    "Replace what stands between the markers; raise ValueError where they are not there once each, in this order."
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f'README.md needs one {START} and one {END} after it: the table goes between them')
    return text[:text.index(START) + len(START)] + block + text[text.index(END):]


def main():
    "Write, or compare."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true', help='write nothing; fail where the README differs from the files')
    a, path = ap.parse_args(), ROOT/'README.md'
    try: there, made = path.read_text(), fill(path.read_text(), make_block(ROOT))
    except (ValueError, OSError) as e: sys.exit(f'make_readme: {e}')
    if there == made: return
    if a.check: sys.exit('make_readme: README.md differs from results/: run python tools/make_readme.py')
    path.write_text(made)


if __name__ == '__main__': main()
