"What several test files share: where things are, and a small phantom made once."
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # before torch is there: idle threads spin on cores that other tests need

import torch

from cesm_nb.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent/'shared'/'data'/'CDD-CESM'
PATIENCE = 1700 # seconds after which a command hangs: a bound beyond what a slow, busy machine takes, never a claim


@pytest.fixture(scope='session', autouse=True)
def one_core():
    "Tests share the cores: what runs in this process counts on one, and leaves no setting of several threads to later tests."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'cpu_count', lambda: 1)
        m.setenv('OMP_NUM_THREADS', '1')
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope='module')
def module_path():
    "A folder for the fixtures of one test file, gone when its tests are over: runs hold 160 MB each."
    folder = Path(tempfile.mkdtemp(prefix='cesm_test_'))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='session')
def phantom(tmp_path_factory):
    "A phantom of 40 women, strong signal."
    return make_phantom(tmp_path_factory.mktemp('data')/'phantom', 40, seed=0, signal=2., size_px=200, progress=False)


@pytest.fixture(scope='session')
def tensors(tmp_path_factory):
    "A folder where runs of the same tensor settings share their tensors."
    return tmp_path_factory.mktemp('tensors')
