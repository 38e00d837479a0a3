"What several test files share: where things are, and a small phantom made once."
import io
import multiprocessing
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # before torch is there: idle threads spin on cores that other tests need

import torch

from cesm_nb.synthetic.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 1700 # seconds after which a command hangs: a bound beyond what a slow, busy machine takes, never a claim


def folder_of(variable):
    "The folder that a variable of the environment names, or none."
    named = os.environ.get(variable)
    return Path(named).resolve() if named else None


REAL, WEIGHTS = folder_of('CESM_DATA'), folder_of('CESM_WEIGHTS')
needs_data = pytest.mark.skipif(
    not REAL, reason='set CESM_DATA to a folder with CDD-CESM, laid out as in data/README.md')
needs_weights = pytest.mark.skipif(
    not WEIGHTS, reason='set CESM_WEIGHTS to a folder with mobilenetv2_100.safetensors and '
    'efficientnet_lite0.safetensors')
DEAR = 'grids', 'audit', 'audit_ladder', 'runs', 'train', 'results', 'evaluate', 'model', 'bad_input' # in CPU seconds


def pytest_configure():
    "A mistyped folder ends all tests with a sentence; otherwise those that need it would skip."
    for variable, folder in dict(CESM_DATA=REAL, CESM_WEIGHTS=WEIGHTS).items():
        if folder and not folder.is_dir():
            raise pytest.UsageError(f'{variable}={folder} is no folder: correct it or unset it')


def pytest_collection_modifyitems(items):
    "The dearest files first: two workers that take file by file end at about the same time."
    place = {f'test_{name}.py': i for i, name in enumerate(DEAR)}
    items.sort(key=lambda item: place.get(item.path.name, len(DEAR)))


def call(command, *args):
    "A command in this process, which has loaded what the command needs: code, output and errors of `subprocess.run`."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try: command(list(map(str, args)))
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
            if isinstance(e.code, str): err.write(e.code)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def forked(work, *args):
    "Do something in a copy of this process, which may be killed: its exit code, minus the signal where one ended it."
    child = multiprocessing.get_context('fork').Process(target=work, args=args)
    child.start()
    child.join(PATIENCE)
    return child.exitcode


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
