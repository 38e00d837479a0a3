"""List the definitions of the package, to show that a commit only moves them between modules.

usage: python tools/dev/ledger.py > before.txt   # a line per top-level statement: hash and name
       python tools/dev/ledger.py before.txt     # compare; exits with 1 where one differs
The hash is of `ast.unparse`, so comments and line breaks do not count; nor do modules, imports,
`__all__` and module docstrings.
"""
import ast
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]/'cesm_nb'


class DropImports(ast.NodeTransformer):
    "Drop imports, also inside functions: they change when a module moves."
    def visit_Import(self, node): return None
    visit_ImportFrom = visit_Import


def name_of(
    node:ast.stmt, # a top-level statement
) -> str: # what it defines, else the beginning of its text
    "Name a statement."
    if hasattr(node, 'name'): return node.name
    targets = getattr(node, 'targets', None) or [getattr(node, 'target', node)]
    return ', '.join(map(ast.unparse, targets)).split('\n')[0][:60]


def ledger(
    package:Path, # folder with modules, in folders too
) -> list: # `hash name`, sorted; the same line twice where something stands twice
    "List the top-level statements of all modules but nbdev's index `_modidx`."
    lines = []
    for path in package.rglob('*.py'):
        if path.name == '_modidx.py': continue
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is not None: del tree.body[0]
        for node in DropImports().visit(tree).body:
            if (name := name_of(node)) == '__all__': continue
            lines.append(f'{sha256(ast.unparse(node).encode()).hexdigest()[:16]} {name}')
    return sorted(lines)


def differences(
    before:list, # lines of `ledger`
    after:list,
) -> list: # `gone: NAME` and `new: NAME`; a changed definition is both
    "Compare as multisets."
    gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    names = lambda lines: sorted(line.partition(' ')[2] for line in lines.elements())
    return [*(f'gone: {n}' for n in names(gone)), *(f'new: {n}' for n in names(new))]


def main(
    stored:str=None, # a file with the lines of before
    package:Path=PACKAGE,
) -> int: # exit code
    "Print the lines, or the differences from those stored."
    lines = ledger(package)
    if not lines: sys.exit(f'ledger: no module with a definition in {package}')
    if stored is None: print('\n'.join(lines))
    else:
        found = differences(Path(stored).read_text().splitlines(), lines)
        print('\n'.join([*found, f'{len(lines)} statements, {len(found)} differences']))
        return bool(found)


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
