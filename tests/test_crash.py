"Kill the tensoriser, fill its disk: what is left is whole, and a re-run completes it byte for byte."
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cesm_nb.phantom import make_phantom
from cesm_nb.tensorize import TensorConfig, read_tensor, tensorize

MB = 2**20


def content(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir())}


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    "Settings for a phantom of full-size tensors, and the folder of an uninterrupted run."
    d = tmp_path_factory.mktemp('crash')
    data = make_phantom(d/'data', n_patients=12, size_px=200, progress=False)
    cfg = TensorConfig(data_root=str(data), run_dir=str(d/'run'), tensor_dir=str(d/'whole'), image_size=224, n_jobs=1)
    start = time.perf_counter()
    tensorize(cfg)
    return cfg, content(d/'whole'), time.perf_counter() - start


def test_killed_at_ten_random_moments(cfg, tmp_path):
    cfg, whole, seconds = cfg
    rng, fork, unfinished = random.Random(0), multiprocessing.get_context('fork'), 0
    for i in range(10):
        mine = replace(cfg, tensor_dir=str(tmp_path/str(i)))
        child = fork.Process(target=tensorize, args=(mine,))
        child.start()
        time.sleep(rng.uniform(.1, .9)*seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        unfinished += not (tmp_path/str(i)/'manifest.csv').exists()
        for f in (tmp_path/str(i)).glob('*.pt'): read_tensor(f) # whole, or not there under its name
        (tmp_path/str(i)).mkdir(exist_ok=True)
        (tmp_path/str(i)/f'.P1_Left.pt.{os.uname().nodename}-{child.pid}.part').write_bytes(b'half') # as if in mid-write
        tensorize(mine)
        assert content(tmp_path/str(i)) == whole, f'kill {i}'
    assert unfinished >= 5 # the kills did interrupt something


def test_killed_with_its_workers(cfg, tmp_path):
    cfg, whole, _ = cfg
    code = 'from cesm_nb.tensorize import main; main()'
    command = [sys.executable, '-c', code, '--data-root', cfg.data_root, '--tensor-dir', tmp_path/'t', '--image-size', '224', '--n-jobs', '2']
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while not list((tmp_path/'t').glob('*.pt')) and run.poll() is None and time.monotonic() < end: time.sleep(.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert list((tmp_path/'t').glob('*.pt'))
    tensorize(replace(cfg, tensor_dir=str(tmp_path/'t')))
    assert content(tmp_path/'t') == whole


def test_damaged_tensor_is_made_again(cfg, tmp_path):
    cfg, whole, _ = cfg
    mine = replace(cfg, tensor_dir=str(tmp_path/'t'))
    tensorize(mine)
    first, second, *_ = sorted((tmp_path/'t').glob('*.pt'))
    first.write_bytes(b'') # the power went before the disk had it
    second.write_bytes(second.read_bytes()[:-9000])
    tensorize(mine)
    assert content(tmp_path/'t') == whole


def run_full(cfg, folder, limit=None):
    "Run the command where the disk is full; its one sentence."
    code = 'from cesm_nb.tensorize import main; main()'
    small = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    command = [sys.executable, '-c', code, '--data-root', cfg.data_root, '--tensor-dir', folder, '--image-size', '224', '--n-jobs', '1']
    done = subprocess.run(command, preexec_fn=small, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    return done.stderr.replace('\r', '\n').strip().splitlines()[-1]


def test_file_size_limit(cfg, tmp_path):
    said = run_full(cfg[0], tmp_path/'t', limit=MB//4)
    assert said.startswith('cesm_tensorize: cannot write') and 'File too large' in said and 'run again once there is room' in said
    assert [f.name for f in (tmp_path/'t').iterdir()] == ['settings.json']


def test_disk_full(cfg, tmp_path):
    cfg, whole, _ = cfg
    disk = tmp_path/'small'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('cannot mount a small tmpfs here: needs root')
    try:
        said = run_full(cfg, disk/'t')
        assert 'cannot write' in said and 'No space left on device' in said and 'what was finished is kept' in said
        left = content(disk/'t')
        assert 4 < len(left) < len(whole) and all(whole[k] == v for k, v in left.items())
        shutil.copytree(disk/'t', tmp_path/'roomy')
    finally: subprocess.run(['umount', disk], check=True)
    tensorize(replace(cfg, tensor_dir=str(tmp_path/'roomy')))
    assert content(tmp_path/'roomy') == whole
