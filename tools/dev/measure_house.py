"""Measure the size of the house: lines per module, code lines per exported cell without signature and docstring.

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
) -> int: # lines of code but for signatures, docstrings, comments and blank lines
    "Count what a reader must follow."
    tree, lines, skip = ast.parse(source), source.splitlines(), set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        first = node.body[0]
        has_doc = isinstance(first, ast.Expr) and isinstance(getattr(first.value, 'value', None),
                                                             str)
        last = first.end_lineno if has_doc else first.lineno - 1
        skip |= set(range(node.lineno,
                          max(last, node.lineno) + 1)) if last >= node.lineno else set()
    kept = [
        line for i, line in enumerate(lines, 1)
        if i not in skip and line.strip() and not line.strip().startswith('#')
    ]
    return len(kept)


def read_cells(
    notebook:Path, # one chapter
) -> list: # (position, source) of each exported cell that is more than imports
    "List the exported cells of a notebook."
    cells = enumerate(nbformat.read(notebook, 4).cells)
    found = [(i, c.source)
             for i, c in cells if c.cell_type == 'code' and re.match(r'#\| *export', c.source)]
    kinds = (ast.Import, ast.ImportFrom)
    return [(i, s) for i, s in found if not all(isinstance(n, kinds) for n in ast.parse(s).body)]


def measure(
) -> tuple: # ({module: lines}, {(notebook, position): lines}, {(notebook, position): lines of its body})
    "Measure every module and every exported cell."
    modules = {p.stem: len(p.read_text().splitlines()) for p in (ROOT/'cesm_nb').rglob('[!_]*.py')}
    cells = {(p.stem, i): s
             for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
             for i, s in read_cells(p)}
    whole = {k: len(s.splitlines()) for k, s in cells.items()}
    return modules, whole, {k: count_body(s) for k, s in cells.items()}


def main():
    "Print the figures."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--modules', type=int, default=5, help='how many of the longest are shown')
    modules, whole, bodies = measure()
    for name, n in sorted(modules.items(), key=lambda kv: -kv[1])[:ap.parse_args().modules]:
        print(f'{n:4d} lines  cesm_nb/{name}.py')
    (notebook, position), longest = max(whole.items(), key=lambda kv: kv[1])
    print(f'{longest:4d} lines  longest exported cell: {notebook}, cell {position}')
    print(
        f'{median(bodies.values()):4g} lines  median body of {len(bodies)} exported cells; {sum(n > 13 for n in bodies.values())} have more than 13'
    )


if __name__ == '__main__': main()
