"""Report lines per module, and lines per exported cell with and without signature and docstring.

usage: python tools/dev/measure_house.py [--modules 5]
Prints the longest modules, the longest exported cell and the median cell.
"""
import argparse
import ast
import re
from pathlib import Path
from statistics import median

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def count_body(
    source:str, # an exported cell
) -> int: # lines without signatures, docstrings, comments and blank lines
    "Count the lines of code."
    tree, lines, skip = ast.parse(source), source.splitlines(), set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        first = node.body[0]
        has_doc = ast.get_docstring(node) is not None
        last = first.end_lineno if has_doc else first.lineno - 1
        skip |= set(range(node.lineno, last + 1))
    kept = [line.strip() for i, line in enumerate(lines, 1) if i not in skip]
    return sum(line != '' and not line.startswith('#') for line in kept)


def read_cells(
    notebook:Path, # one chapter
) -> list: # (position, source) of each exported cell that is more than imports
    "List the exported cells of a notebook."
    cells = enumerate(nbformat.read(notebook, 4).cells)
    exported = lambda c: c.cell_type == 'code' and re.match(r'#\| *export', c.source)
    found = [(i, c.source) for i, c in cells if exported(c)]
    kinds = (ast.Import, ast.ImportFrom)
    return [(i, s) for i, s in found if not all(isinstance(n, kinds) for n in ast.parse(s).body)]


def measure(
) -> tuple: # {module: lines}, {(notebook, position): lines of the cell}, the same for its body
    "Count the lines of each module and each exported cell."
    modules = {p.stem: len(p.read_text().splitlines()) for p in (ROOT/'cesm_nb').rglob('[!_]*.py')}
    notebooks = sorted((ROOT/'nbs').rglob('*.ipynb'))
    cells = {(p.stem, i): s for p in notebooks for i, s in read_cells(p)}
    whole = {k: len(s.splitlines()) for k, s in cells.items()}
    return modules, whole, {k: count_body(s) for k, s in cells.items()}


def main():
    "Print the figures."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--modules', type=int, default=5, help='number of modules shown, longest first')
    modules, whole, bodies = measure()
    for name, n in sorted(modules.items(), key=lambda kv: -kv[1])[:ap.parse_args().modules]:
        print(f'{n:4d} lines  cesm_nb/{name}.py')
    (notebook, position), longest = max(whole.items(), key=lambda kv: kv[1])
    print(f'{longest:4d} lines  longest exported cell: {notebook}, cell {position}')
    long = sum(n > 13 for n in bodies.values())
    print(f'{median(bodies.values()):4g} lines  median body of {len(bodies)} exported cells; '
          f'{long} have more than 13')


if __name__ == '__main__': main()
