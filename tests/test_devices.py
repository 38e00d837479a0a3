"Two processes train like one: the same losses, and one run folder, written once."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import PATIENCE

# What each process runs: a whole run whose writes are counted, then five steps in double precision.
# In single precision Adam's first steps have the size of the learning rate however small a gradient
# is. Biases before a batch norm have a gradient of rounding noise, so they move either way, and the
# losses of the next steps differ by up to a few thousandths.
CODE = '''
import json, os, sys
from pathlib import Path
import torch
import cesm_nb.core.files as files
import cesm_nb.train as trainer
from cesm_nb.training.dataset import read_breasts
from cesm_nb.training.distributed import add_up, find_team
from cesm_nb.core.settings import make_config
from cesm_nb.tensorize import read_manifest
torch.set_num_threads(1)
root, out = sys.argv[1:]
team = find_team(cpu=True)
settings = dict(data_root=root, run_dir=out, image_size=64, epochs=2, batch_size=16, lr=1e-4,
                drop_rate=0., device='cpu', mixed_precision='no', backbones='lcnet_035')
written, write = [], files.write_atomic
def counted(path, content):
    written.append(str(Path(path).relative_to(out)))
    write(path, content)
files.write_atomic = trainer.write_atomic = counted
run = trainer.fit(make_config(settings))
# without metadata: age and density are single precision
cfg = make_config(settings | dict(tensor_dir=f'{out}/tensors', metadata=False))
data = read_breasts(cfg.tensor_dir, read_manifest(cfg.tensor_dir))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
network = trainer.build_network(vars(cfg), dict(mask_missing_views=False))
t = trainer.Training(network, cfg, torch.device('cpu'))
t.model.train()
generator, losses = torch.Generator().manual_seed(0), []
for idx in trainer.epoch_batches(torch.arange(len(data.label)), 16, generator)[:5]:
    weights = trainer.weigh_classes(data.label).double()
    loss = trainer.train_step(t, data, idx, weights, cfg, generator)[0]
    losses.append(float(add_up(loss, team)))
output = dict(losses=losses, written=written, processes=team.num_processes)
Path(out, f'process{team.process_index}.json').write_text(json.dumps(output))
'''


def train(phantom, out, *launcher):
    "Run `CODE` under a launcher; return the output of each process."
    env = os.environ | dict(OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, *launcher, out.parent/'steps.py', phantom, out],
                          capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(f.read_text()) for f in sorted(out.glob('process*.json'))]


@pytest.fixture(scope='module')
def runs(phantom, module_path):
    "The same training by one process and by two."
    d = module_path
    (d/'steps.py').write_text(CODE)
    # accelerate launch --cpu starts one process
    launch = '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone'
    return d, train(phantom, d/'one'), train(phantom, d/'two', *launch)


def test_losses_agree_between_one_and_two_processes(runs):
    _, one, two = runs
    assert [o['processes'] for o in one + two] == [1, 2, 2]
    assert len(one[0]['losses']) == 5 and one[0]['losses'][0] != one[0]['losses'][4]
    for o in two: np.testing.assert_allclose(o['losses'], one[0]['losses'], atol=1e-6, rtol=0)


def test_run_folder_is_written_once(runs):
    d, one, (main, other) = runs
    assert other['written'] == [] and sorted(main['written']) == sorted(one[0]['written'])
    def list_files(folder):
        files = [f for f in folder.rglob('*') if f.is_file() and not f.name.startswith('process')]
        return sorted(str(f.relative_to(folder)) for f in files)
    files = list_files(d/'one')
    assert files == list_files(d/'two') and 'predictions.csv' in files
    history = [pd.read_csv(d/k/'history.csv') for k in ('one', 'two')]
    np.testing.assert_allclose(history[1].train_loss, history[0].train_loss, atol=.05)
    sessions = json.loads((d/'two'/'config.json').read_text())['sessions']
    assert [session['processes'] for session in sessions] == [2]
