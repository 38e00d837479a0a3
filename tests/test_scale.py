"A cluster writes the same bytes as one process; the memory of a process is bounded."
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import pytest

from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import tensorize
from conftest import PATIENCE

BIN = Path(sys.executable).parent


@pytest.fixture(scope='module')
def made(module_path):
    "Settings for a phantom, and the folder written by one process."
    root = make_phantom(module_path/'data', n_patients=10, size_px=150, progress=False)
    cfg = TensorConfig(data_root=str(root), run_dir=str(module_path), n_jobs=1)
    one = replace(cfg, tensor_dir=str(module_path/'one'))
    return one, tensorize(one)


def same_files(a, b):
    "Check whether two folders have the same files, byte for byte."
    a, b = ({f.name: f.read_bytes() for f in Path(d).iterdir()} for d in (a, b))
    return a == b


def test_two_processes(made, tmp_path):
    "By the command, independent of the pools of other tests."
    cfg, _ = made
    words = ['--data-root', cfg.data_root, '--tensor-dir', tmp_path/'two', '--run-dir',
             tmp_path/'run', '--n-jobs', '2']
    done = subprocess.run([BIN/'cesm_tensorize', *words], capture_output=True, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert same_files(cfg.tensor_dir, tmp_path/'two')


def test_dask_cluster(made, tmp_path):
    reason = "pip install 'cesm_nb[dask]' to test a cluster"
    distributed = pytest.importorskip('distributed', reason=reason)
    cfg, manifest = made
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1,
                                   dashboard_address=None) as cluster,
          distributed.Client(cluster), joblib.parallel_config('dask')):
        present = tensorize(replace(cfg, tensor_dir=str(tmp_path), n_jobs=-1))
    assert present.equals(manifest) and same_files(cfg.tensor_dir, tmp_path)


def test_ray_cluster(made, tmp_path):
    ray = pytest.importorskip('ray', reason="pip install 'cesm_nb[ray]' to test a cluster")
    from ray.util.joblib import register_ray
    cfg, manifest = made
    register_ray()
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        with joblib.parallel_config('ray'):
            present = tensorize(replace(cfg, tensor_dir=str(tmp_path), n_jobs=-1))
    finally: ray.shutdown()
    assert present.equals(manifest) and same_files(cfg.tensor_dir, tmp_path)


def test_memory_of_a_process(made, tmp_path):
    "Peak memory does not grow with the number of breasts: one cohort once, and twenty times."
    code = '''
import re, sys, tempfile
from pathlib import Path
from cesm_nb.data import read_dataset
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import list_tasks, save_tensors, tensor_settings
# ru_maxrss would include the peak of pytest
peak_kib = lambda: re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]
peak_mib = lambda: int(peak_kib())//1024
cfg = TensorConfig(data_root=sys.argv[1], image_size=224)
data = read_dataset(cfg.data_root)
# base: the size of the libraries differs between builds
tasks, settings, base = list_tasks(cfg, data), tensor_settings(cfg, data), peak_mib()
for i in range(20):
    with tempfile.TemporaryDirectory() as d: save_tensors(tasks, settings, d)
    if i == 0: first = peak_mib()
print(base, first, peak_mib())
'''
    out = subprocess.run([sys.executable, '-c', code, made[0].data_root], capture_output=True,
                         text=True, check=True, timeout=PATIENCE).stdout
    base, first, last = map(int, out.split())
    assert first - base < 300 and last - first < 50, out
