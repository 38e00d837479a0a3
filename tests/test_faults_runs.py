"Run folders that are altered, shared by two processes or on a full disk are rejected."
import signal
import subprocess
import sys

import psutil

from conftest import PATIENCE, ROOT

from attack import run_attacks

HOLD = '''
import sys
from cesm_nb.core.files import lock_folder
with lock_folder(sys.argv[1]): print("held", flush=True); sys.stdin.read()
'''
TAKE = '''
import sys
from cesm_nb.core.errors import one_way_out
from cesm_nb.core.files import lock_folder
with one_way_out("cesm_train"), lock_folder(sys.argv[1]): print("mine")
'''
WRITE = '''
import sys
from cesm_nb.core.errors import one_way_out
from cesm_nb.core.files import write_atomic
with one_way_out("cesm_x"): write_atomic(sys.argv[1], b"x"*10**6)
'''


def test_run_folder_is_locked(tmp_path):
    "The second process gets one sentence that names the first; a killed process leaves no lock."
    python = lambda code: [sys.executable, '-c', code, str(tmp_path)]
    take = lambda: subprocess.run(python(TAKE), capture_output=True, text=True, timeout=PATIENCE)
    with subprocess.Popen(python(HOLD), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as first:
        assert first.stdout.readline() == 'held\n'
        second = take()
        assert second.returncode == 1 and len(second.stderr.splitlines()) == 1
        message = f'cesm_train: {tmp_path} is in use by process {first.pid}: wait until it ends'
        assert message in second.stderr
        first.kill()
        first.wait(PATIENCE)
        assert (tmp_path/'.lock').read_text() and take().stdout == 'mine\n'
    files = {f.name: f.read_text() for f in tmp_path.iterdir()}
    assert files == {'.lock': ''} # names no process


def test_size_limit_leaves_no_partial_file(tmp_path):
    (tmp_path/'x').write_text('before')
    command = ['sh', '-c', 'ulimit -f 8; exec "$@"', 'sh', sys.executable, '-c', WRITE,
               str(tmp_path/'x')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    message = f'cesm_x: cannot write {tmp_path}/x: File too large'
    assert done.returncode == 1 and done.stderr.startswith(message)
    assert [f.read_text() for f in tmp_path.iterdir()] == ['before']


def test_sample_of_altered_runs(tmp_path):
    "`python tools/dev/attack.py` runs all of them."
    counts, bad = run_attacks(tmp_path, 12, 0)
    assert bad == [] and counts['refused'] >= 6, counts


GRID = '''
import os, signal, sys, threading
from pathlib import Path
from types import SimpleNamespace
def wait(own, others, n_threads, notebook, parent):
    (Path(own.tensor_dir)/f'{os.getpid()}.worker').touch()
    if len(list(Path(own.tensor_dir).glob('*.worker'))) == 2: os.kill(parent, signal.SIGTERM)
    threading.Event().wait(600)
if __name__ == '__main__':
    from cesm_nb.experiments import grid as grids
    from cesm_nb.core.errors import one_way_out
    grids.run_one, grids.tensorize, grids.os.cpu_count = wait, lambda cfg: None, lambda: 2
    jobs = [(SimpleNamespace(tensor_dir=sys.argv[1], model='four_stream'), [])]*2
    with one_way_out('cesm_grid'): grids.run_jobs(jobs, 2)
'''


def test_grid_workers_end_on_sigterm(tmp_path):
    (tmp_path/'grid.py').write_text(GRID)
    done = subprocess.run([sys.executable, tmp_path/'grid.py', tmp_path], cwd=ROOT,
                          capture_output=True, text=True, timeout=PATIENCE)
    workers = [int(f.stem) for f in tmp_path.glob('*.worker')]
    assert (done.returncode, len(workers)) == (128 + signal.SIGTERM, 2), done.stderr
    assert 'cesm_grid: stopped' in done.stderr and 'Traceback' not in done.stderr
    runs = lambda w: psutil.pid_exists(w) and psutil.Process(w).status() != psutil.STATUS_ZOMBIE
    assert [w for w in workers if runs(w)] == []
