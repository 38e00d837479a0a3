"""Print pins of Colab's packages, from the list that Colab publishes; run the quickstart with them.

usage: python tools/colab_pins.py pip-freeze.txt > colab.txt  # pins of what this package needs
       python tools/colab_pins.py --run [pip-freeze.txt]      # run the quickstart with them

Without a list `tools/colab.txt` is read. `--run` makes an environment in a temporary folder (7 GB
with CUDA's libraries, removed afterwards) with Colab's Python, its pins and papermill, but without
this package: the notebook installs that, from a clone of the last commit.
"""
import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = { # not required by this package, but installed in Colab, and to be left alone
    'fastai', 'fastcore', 'ipython', 'ipywidgets', 'pip'}


def name_of(
    word:str, # a requirement or a pin
) -> str: # as PyPI normalises it
    "Take the name of a package."
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', word)[0]).lower()


def colab_pins(
    published:str, # text of `pip freeze` in Colab
    needed:list, # requirements of this package
) -> list: # pins, in the order of the list
    "List the pins of `needed` and `BESIDE`; local versions (+cu126) and URLs become plain pins."
    names, out = {name_of(w) for w in needed} | BESIDE, []
    for line in published.splitlines():
        if not re.match(r'\w', line) or name_of(line) not in names: continue
        plain = re.fullmatch(r'[\w.-]+==([\w.]+)(\+\w+)?', line)
        wheel = re.search(r'-(\d[\d.]*)(%2B\w+|\+\w+)?-cp', line)
        version = plain or wheel
        if version: out.append(f'{name_of(line)}=={version[1]}')
    return out


def needed() -> list: # requirements
    "Read what the notebooks need from `settings.ini`."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    keys = 'requirements', 'notebooks_requirements'
    return [w for k in keys for w in settings['DEFAULT'][k].split()]


def moved(
    pins:list, # what Colab has
    frozen:str, # text of `pip freeze --all` afterwards
) -> list: # a sentence per pin that is another version now, or gone
    "List which of Colab's packages have changed."
    now = {name_of(w): w.split('==')[1] for w in colab_pins(frozen, pins)}
    changed = [p for p in pins if now.get(name_of(p)) != p.split('==')[1]]
    return [f'{p} has become {now.get(name_of(p), "nothing")}' for p in changed]


def call(*words, **options):
    "Run a program, show its output, and exit if it fails."
    done = subprocess.run(list(map(str, words)), **options)
    if done.returncode:
        sys.exit(f'colab_pins: `{" ".join(map(str, words))}` failed: see its output above')
    return done.stdout


def run_quickstart(
    pins:list, # what the environment has
    python:str, # of the version that Colab has
    folder:Path, # empty, or with the environment of an earlier run in env/; clone and run go here
) -> str: # what it took
    "Run the quickstart as on Colab; exit with a message if a cell fails or a pin has changed."
    own, copy = folder/'env'/'bin'/'python', folder/'copy'
    if not own.exists():
        call(python, '-m', 'venv', folder/'env')
        call(own, '-m', 'pip', 'install', '--quiet', *pins, 'papermill')
    freeze = lambda: call(own, '-m', 'pip', 'freeze', '--all', stdout=subprocess.PIPE, text=True)
    before = freeze()
    other = moved(pins, before) + ['cesm_nb is installed']*('cesm' in before)
    if other: sys.exit(f'colab_pins: before the notebook runs, {"; ".join(other)}')
    call('git', 'clone', '--quiet', ROOT, copy)
    start, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    call(own, '-m', 'papermill', copy/'nbs'/'quickstart.ipynb', folder/'out.ipynb', '-k', 'python3',
         '--no-progress-bar', '-p', 'install_from', copy, cwd=folder)
    wall, now = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    other = moved(pins, freeze())
    if other:
        sys.exit(f'colab_pins: installing this package changes what Colab has: {"; ".join(other)}')
    cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return (f'quickstart with {len(pins)} pins of Colab, including installation: '
            f'{wall:.0f} s, {cpu:.0f} CPU seconds')


def main():
    "Print the pins, or run the quickstart with them."
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('published', nargs='?',
                    help='pip freeze of Colab (without it: the pins of tools/colab.txt)')
    ap.add_argument('--run', action='store_true', help='run nbs/quickstart.ipynb with the pins')
    ap.add_argument('--python', default='python3.12', help='Python of the version that Colab has')
    ap.add_argument('--folder', type=Path,
                    help='a folder to work in, which is kept (without it: a temporary one)')
    a = ap.parse_args()
    source = Path(a.published or ROOT/'tools'/'colab.txt')
    pins = colab_pins(source.read_text(), needed())
    if not pins:
        sys.exit(f'colab_pins: {source} lists none of the required packages: is it a pip freeze?')
    print('\n'.join(pins))
    if a.run:
        with tempfile.TemporaryDirectory() as folder:
            print(run_quickstart(pins, a.python, a.folder or Path(folder)))


if __name__ == '__main__': main()
