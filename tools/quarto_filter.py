"Quarto's `ipynb-filters` hook: let a plain `quarto render` at the root read our notebooks."
import os
import sys
from contextlib import redirect_stdout
from json import loads
from pathlib import Path


def processed(
    text:str, # notebook as JSON, directives and all
) -> str: # the same notebook after nbdev's own documentation filters
    "Apply `FilterDefaults` to the notebook in `text`."
    from execnb.nbio import dict2nb, nb2str
    from nbdev.processors import FilterDefaults
    os.environ['IN_TEST'] = '1' # as nbdev does: an `nbdev_export()` cell must not write
    nb = dict2nb(loads(text))
    nb.path_ = 'page.ipynb' # Quarto does not tell the name, nbdev's front matter wants one ...
    with redirect_stdout(sys.stderr):
        FilterDefaults()(nb)
    front = nb.cells[0]
    front.source = front.source.replace('output-file: page.html\n', '') # ... and writes it down
    return nb2str(nb)


if __name__ == '__main__':
    text = sys.stdin.read()
    in_proc = '_proc' in Path.cwd().parts # nbdev has been here already
    sys.stdout.write(text if in_proc else processed(text))
