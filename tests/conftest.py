"Shared by several test files: folders, and a small phantom made once."
import io
import multiprocessing
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

# before torch is imported: idle threads would spin on cores that other tests need
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch

from cesm_nb.synthetic.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 1700 # seconds until a command counts as hanging: ample even on a slow, busy machine


def folder_of(variable):
    "Return the folder named by an environment variable, or None."
    name = os.environ.get(variable)
    return Path(name).resolve() if name else None


REAL, WEIGHTS = folder_of('CESM_DATA'), folder_of('CESM_WEIGHTS')
needs_data = pytest.mark.skipif(
    not REAL, reason='set CESM_DATA to a folder with CDD-CESM, laid out as in data/README.md')
needs_weights = pytest.mark.skipif(
    not WEIGHTS, reason='set CESM_WEIGHTS to a folder with mobilenetv2_100.safetensors and '
    'efficientnet_lite0.safetensors')
SLOWEST = ('grids', 'audit', 'audit_ladder', 'runs', 'train', 'results', 'evaluate', 'model',
           'bad_input') # by CPU time


def pytest_configure():
    "Stop if a named folder does not exist; the tests that need it would be skipped otherwise."
    for variable, folder in dict(CESM_DATA=REAL, CESM_WEIGHTS=WEIGHTS).items():
        if folder and not folder.is_dir():
            raise pytest.UsageError(f'{variable}={folder} is no folder: correct it or unset it')


def pytest_collection_modifyitems(items):
    "Run the slowest files first, so that two workers end at about the same time."
    rank = {f'test_{name}.py': i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOWEST)))


def call(command, *args):
    "Run a command in this process, to save the imports; return what `subprocess.run` would."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try: command(list(map(str, args)))
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
            if isinstance(e.code, str): err.write(e.code)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def forked(work, *args):
    "Run a function in a fork, which may be killed; return its exit code, or minus the signal."
    child = multiprocessing.get_context('fork').Process(target=work, args=args)
    child.start()
    child.join(PATIENCE)
    return child.exitcode


@pytest.fixture(scope='session', autouse=True)
def one_core():
    "Use one thread in this process, so that no test leaves several threads to later ones."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'cpu_count', lambda: 1)
        m.setenv('OMP_NUM_THREADS', '1')
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope='module')
def module_path():
    "A folder for the fixtures of one test file, deleted after its tests: a run takes 160 MB."
    folder = Path(tempfile.mkdtemp(prefix='cesm_test_'))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='session')
def phantom(tmp_path_factory):
    "A phantom of 40 patients, strong signal."
    root = tmp_path_factory.mktemp('data')/'phantom'
    return make_phantom(root, 40, seed=0, signal=2., size_px=200, progress=False)


@pytest.fixture(scope='session')
def tensors(tmp_path_factory):
    "A folder in which runs with the same tensor settings share their tensors."
    return tmp_path_factory.mktemp('tensors')
