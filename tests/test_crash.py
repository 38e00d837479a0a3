"Kill the tensoriser, fill the disk of every command: files are whole, a re-run completes them."
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import cesm_nb.tensorize
from cesm_nb import cli as commands
from cesm_nb.core.errors import one_way_out
from cesm_nb.training.inference import export_run
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.core.settings import TensorConfig, make_config
from cesm_nb.tensorize import read_tensor, tensorize
from cesm_nb.train import fit
from conftest import PATIENCE, ROOT
from mortal import die_at

MB = 2**20
PLACES = (cesm_nb.tensorize, 'make_tensor'), (os, 'replace') # calls at which a process is killed


def content(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir())}


def tensorize_command(cfg, folder, n_jobs):
    code = 'from cesm_nb.cli import cesm_tensorize; cesm_tensorize()'
    return [sys.executable, '-c', code, '--data-root', cfg.data_root, '--tensor-dir', folder,
            '--image-size', '224', '--n-jobs', str(n_jobs)]


@pytest.fixture(scope='module')
def cfg(module_path):
    "Settings for a phantom, the files of an uninterrupted run and its number of events."
    d = module_path
    data = make_phantom(d/'data', n_patients=12, size_px=200, progress=False)
    cfg = TensorConfig(data_root=str(data), run_dir=str(d/'run'), tensor_dir=str(d/'whole'),
                       image_size=224, n_jobs=1)
    with pytest.MonkeyPatch.context() as m:
        events = die_at(0, *PLACES, patch=m.setattr)
        tensorize(cfg)
    return cfg, content(d/'whole'), events()


def tensorize_until(cfg, n):
    "Tensorise, killed at event `n`."
    die_at(n, *PLACES)
    tensorize(cfg)


def test_tensorize_killed_at_ten_random_events(cfg, tmp_path):
    "Before, during or after making a tensor or renaming a file, drawn from events of the run."
    cfg, whole, events = cfg
    fork, left = multiprocessing.get_context('fork'), []
    for n in random.Random(0).sample(range(1, events + 1), 10):
        folder = tmp_path/str(n)
        settings = replace(cfg, tensor_dir=str(folder))
        child = fork.Process(target=tensorize_until, args=(settings, n))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == -signal.SIGKILL, f'event {n} of {events}'
        left.append(len(list(folder.glob('*.pt'))))
        for f in folder.glob('*.pt'): read_tensor(f) # whole, or absent
        partial = f'.P1_Left.pt.{os.uname().nodename}-{child.pid}.part'
        (folder/partial).write_bytes(b'half') # as if killed while writing
        tensorize(settings)
        assert content(folder) == whole, f'killed at event {n} of {events}'
    assert len(set(left)) > 5 and events > 40, left # kills are spread over the run


def in_session(process, leader):
    "Check whether a running process belongs to the session of `leader`."
    try: return process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader
    except (psutil.NoSuchProcess, ProcessLookupError): return False


def test_tensorize_killed_with_its_workers(cfg, tmp_path):
    "A worker kills itself, the other worker and the command while renaming its second tensor."
    cfg, whole, _ = cfg
    (tmp_path/'sitecustomize.py').write_text(f'''
import os, signal, sys
sys.path.append({str(ROOT/'tests')!r})
from mortal import die_at
die_at(3, (os, 'replace'), kill=lambda: os.killpg(0, signal.SIGKILL))
''')
    paths = [str(tmp_path), os.environ.get('PYTHONPATH', '')]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(paths))
    command = tensorize_command(cfg, tmp_path/'t', n_jobs=2)
    run = subprocess.Popen(command, start_new_session=True, env=env, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    assert run.wait(PATIENCE) == -signal.SIGKILL
    # a worker may outlive the command by a moment
    dying = [p for p in psutil.process_iter() if in_session(p, run.pid)]
    assert psutil.wait_procs(dying, timeout=PATIENCE)[1] == []
    left = content(tmp_path/'t')
    assert 0 < len(left) < len(whole) and 'manifest.csv' not in left
    tensorize(replace(cfg, tensor_dir=str(tmp_path/'t')))
    assert content(tmp_path/'t') == whole


def test_damaged_tensor_is_remade(cfg, tmp_path):
    cfg, whole, _ = cfg
    settings = replace(cfg, tensor_dir=str(tmp_path/'t'))
    tensorize(settings)
    first, second, *_ = sorted((tmp_path/'t').glob('*.pt'))
    first.write_bytes(b'') # power failure before the data reached the disk
    second.write_bytes(second.read_bytes()[:-9000])
    tensorize(settings)
    assert content(tmp_path/'t') == whole


def run_full(cfg, folder, limit=None):
    "Run the command on a full disk, or with a limit on file sizes; return its error message."
    small = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    command = tensorize_command(cfg, folder, n_jobs=1)
    done = subprocess.run(command, preexec_fn=small, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    return done.stderr.replace('\r', '\n').strip().splitlines()[-1]


def test_file_size_limit(cfg, tmp_path):
    output = run_full(cfg[0], tmp_path/'t', limit=MB//4)
    assert output.startswith('cesm_tensorize: cannot write') and 'File too large' in output
    assert 'run again once there is room' in output
    assert [f.name for f in (tmp_path/'t').iterdir()] == ['settings.json']


def test_disk_full(cfg, tmp_path):
    cfg, whole, _ = cfg
    disk = tmp_path/'small'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk]
    if subprocess.run(mount, capture_output=True, timeout=PATIENCE).returncode:
        pytest.skip('cannot mount a small tmpfs here: needs root')
    try:
        output = run_full(cfg, disk/'t')
        assert 'cannot write' in output and 'No space left on device' in output
        assert 'what was finished is kept' in output
        left = content(disk/'t')
        assert 4 < len(left) < len(whole) and all(whole[k] == v for k, v in left.items())
        shutil.copytree(disk/'t', tmp_path/'roomy')
    finally: subprocess.run(['umount', disk], check=True, timeout=PATIENCE)
    tensorize(replace(cfg, tensor_dir=str(tmp_path/'roomy')))
    assert content(tmp_path/'roomy') == whole


SMALL = dict(protocol='clinical', image_size=32, epochs=1, backbones='lcnet_035', device='cpu',
             mixed_precision='no', n_jobs=1)


@pytest.fixture(scope='module')
def finished(module_path):
    "A small phantom and a run trained on it."
    torch.set_num_threads(1) # threads do not survive a fork
    data = make_phantom(module_path/'small', n_patients=24, size_px=64, progress=False)
    fit(make_config(SMALL | dict(data_root=str(data), run_dir=str(module_path/'finished'))))
    return data, module_path/'finished'


def export(args):
    with one_way_out('cesm_export'): export_run(*args)


def options(settings):
    return [w for k, v in settings.items() for w in ('--' + k.replace('_', '-'), str(v))]


OUT = ('--out', 'out')
QUICK = '--n-repeats 1 --n-trees 2 --n-folds 3 --n-draws 9 --n-jobs 1'.split()
WRITES = { # command -> (largest file in bytes, its arguments from the data, a run and an image)
    'tensorize': (
        9_000, lambda d, r, i: ['--data-root', d, '--run-dir', 'out', '--image-size', '32']),
    'check': (9_000, lambda d, r, i: [d, *OUT]),
    'audit': (20_000, lambda d, r, i: [d, *OUT, *QUICK]),
    'phantom': (3_000, lambda d, r, i: ['--root', 'out', '--n-patients', '6', '--size-px', '64']),
    'train': (99_000, lambda d, r, i: ['--data-root', d, '--run-dir', 'out', *options(SMALL)]),
    'evaluate': (30_000, lambda d, r, i: [r, '--n-draws', '20', '--no-inside']),
    'predict': (20_000, lambda d, r, i: [i, '--run', r, *OUT, '--anyway']),
    'export': (99_000, lambda d, r, i: [r, 'out'])}


def run_limited(name, limit, args, ended):
    "Run a command with a file size limit; put its error message, or '', into the queue `ended`."
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    command = export if name == 'export' else getattr(commands, f'cesm_{name}')
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try: command(args)
        except SystemExit as e: ended.put(str(e))
        else: ended.put('')


@pytest.mark.parametrize('name', WRITES)
def test_commands_leave_no_partial_file(finished, tmp_path, monkeypatch, name):
    "No file has the size of the limit, as a truncated one would; the message names the file."
    data, run = finished
    run = shutil.copytree(run, tmp_path/'run')
    limit, make_args = WRITES[name]
    image = next(f for f in sorted(data.glob('Subtracted*/*_CC.jpg')))
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context('fork')
    ended = fork.SimpleQueue()
    args = [str(arg) for arg in make_args(data, run, image)]
    child = fork.Process(target=run_limited, args=(name, limit, args, ended))
    child.start()
    child.join(PATIENCE)
    end = ended.get() if child.exitcode == 0 else f'exit code {child.exitcode}'
    assert end.startswith(f'cesm_{name}: ') and '\n' not in end
    assert 'cannot write' in end and 'File too large' in end
    files = [f for f in tmp_path.rglob('*') if f.is_file()]
    assert [f for f in files if f.stat().st_size == limit or f.suffix == '.part'] == []
    assert not [f for f in files if 'run' not in f.parts and f.stat().st_size > limit]
