"""Write the example pages of the site: what commands write for a phantom.

usage: python tools/make_examples.py [FOLDER]
FOLDER is nbs/examples if not given, which git ignores; the workflow that builds the site runs this
first. A small model is trained, which takes some minutes on two cores.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ('check.html', 'audit.html', 'report.html', 'case.html')


def commands(
    work:Path, # folder for the phantom, the run and the pages
) -> list: # command and options each
    "List the commands, in order."
    data, run, case = work/'phantom', work/'run', sorted((work/'phantom').glob('Sub*/P1_L_CM_*'))
    return [
        ['cesm_phantom', '--root', data, '--n-patients', 60, '--signal', 2,
         '--size-px', 200],
        ['cesm_check', data, '--out', work/'check'],
        ['cesm_audit', '--demo', '--out', work/'audit'],
        ['cesm_train', '-f', ROOT/'configs'/'smoke.yaml', '--protocol', 'clinical', '--data-root',
         data, '--run-dir', run],
        ['cesm_evaluate', run],
        ['cesm_predict', *case, '--run', run, '--out', work/'case']]


def run_command(name, *options):
    "Run a console script of this checkout; raise CalledProcessError if it fails."
    code = f'from cesm_nb.cli import {name}; {name}()'
    subprocess.run([sys.executable, '-c', code, *map(str, options)], cwd=ROOT, check=True)


def main(folder):
    "Write the pages."
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        for i in range(len(commands(work))): run_command(*commands(work)[i])
        written = [work/'check'/'index.html', work/'audit'/'index.html', work/'run'/'report.html',
                   next((work/'case').rglob('*.html'))]
        for page, name in zip(written, PAGES): shutil.copy(page, folder/name)


if __name__ == '__main__': main(Path(sys.argv[1]) if sys.argv[1:] else ROOT/'nbs'/'examples')
