"Training that is killed, fed nonsense, cut down or moved: it goes on exactly, says what is wrong, or works."
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from cesm_nb.model import ABLATIONS
from cesm_nb.train import fit, load_run, make_config, predict_run

SMALL = dict(image_size=32, epochs=1, batch_size=16, device='cpu', mixed_precision='no')
CODE = '''
import sys, torch
torch.set_num_threads(1)
from cesm_nb.train import fit, make_config
fit(make_config(dict(data_root=sys.argv[1], tensor_dir=sys.argv[2], run_dir=sys.argv[3], image_size=64, epochs=4, batch_size=8, lr=1e-3,
                     device='cpu', mixed_precision='no')))
'''


@pytest.fixture(scope='module')
def small(phantom, tmp_path_factory):
    "Settings of a short run whose tensors are shared."
    return make_config(SMALL | dict(data_root=str(phantom), tensor_dir=str(tmp_path_factory.mktemp('tensors'))))


def start(phantom, folder, name):
    "Train in a process of its own."
    args = [sys.executable, '-c', CODE, str(phantom), str(folder/'tensors'), str(folder/name)]
    return subprocess.Popen(args, env=os.environ | dict(OMP_NUM_THREADS='1'), stderr=subprocess.DEVNULL)


def results(run_dir):
    "What a run left, byte by byte."
    return {f: (run_dir/f).read_bytes() for f in ('checkpoints/best.safetensors', 'history.csv', 'predictions.csv')}


def weights(run_dir):
    "The last weights of a run."
    return torch.load(run_dir/'checkpoints'/'last'/'state.pt', weights_only=True)['model']


def wait_for_epoch(process, run_dir, n, seconds=300):
    "Wait until a run has kept `n` epochs (0: has its settings), or has ended."
    state, until = run_dir/'checkpoints'/'last'/'state.pt', time.monotonic() + seconds
    while process.poll() is None:
        if n == 0 and (run_dir/'config.json').exists(): return
        if n and state.exists() and len(torch.load(state, weights_only=True)['history']) >= n: return
        assert time.monotonic() < until, f'no epoch {n} in {seconds} s'
        time.sleep(.02)


def test_killed_at_five_random_moments(phantom, tmp_path):
    "Killed when it has its settings, after epochs 1, 2, 2 and 3 and a random while, it goes on to the same bytes."
    assert start(phantom, tmp_path, 'whole').wait(600) == 0
    draw, kills = random.Random(0), 0
    for n in (0, 1, 2, 2, 3):
        process = start(phantom, tmp_path, 'cut')
        wait_for_epoch(process, tmp_path/'cut', n)
        time.sleep(draw.uniform(0, .2)) # into the next epoch, wherever that is on this machine
        process.send_signal(signal.SIGKILL)
        kills += process.wait(60) == -signal.SIGKILL # a run may end first: the next one has nothing left to do
    assert kills >= 2
    assert start(phantom, tmp_path, 'cut').wait(600) == 0
    assert results(tmp_path/'cut') == results(tmp_path/'whole')
    last, whole = weights(tmp_path/'cut'), weights(tmp_path/'whole')
    assert all(torch.equal(last[k], v) for k, v in whole.items())


@pytest.mark.parametrize('name', ABLATIONS)
def test_every_ablation_trains(small, tmp_path, name):
    run = fit(replace(small, run_dir=str(tmp_path), **ABLATIONS[name]))
    assert len(run.history) == 1 and run.predictions.filter(like='p_').notna().all(axis=None)
    model, _ = load_run(tmp_path) # its settings are enough to build it again
    assert sum(p.numel() for p in model.parameters()) == run.config['n_parameters']


def test_run_folder_alone_is_enough(tmp_path):
    run = fit(make_config(SMALL | dict(run_dir=str(tmp_path/'run'), protocol='clinical', phantom_patients=24)))
    written = (tmp_path/'run'/'predictions.csv').read_text()
    shutil.rmtree(tmp_path/'run'/'phantom') # images, sheet, regions
    (tmp_path/'run').rename(tmp_path/'elsewhere')
    assert predict_run(tmp_path/'elsewhere', device='cpu').to_csv(index=False) == written
    assert not Path(run.config['settings']['tensor_dir']).exists()


def test_loss_that_turns_nan_keeps_the_last_epoch(small, tmp_path):
    fit(replace(small, run_dir=str(tmp_path)))
    kept = weights(tmp_path)
    state = torch.load(tmp_path/'checkpoints'/'last'/'state.pt', weights_only=True)
    state['opt']['param_groups'][0]['lr'] = float('nan')
    torch.save(state, tmp_path/'checkpoints'/'last'/'state.pt')
    with pytest.raises(FloatingPointError, match=r'loss is nan at epoch 2, batch \d+ of \d+.*epoch 1 is kept'):
        fit(replace(small, run_dir=str(tmp_path), epochs=2))
    after = weights(tmp_path)
    assert all(torch.equal(after[k], v) for k, v in kept.items())


def test_rate_beyond_reason(small, tmp_path):
    with pytest.raises(FloatingPointError, match=r'loss is (nan|inf) at .*: lower lr \(1000000000.0\) in another run_dir; no epoch is kept'):
        fit(replace(small, run_dir=str(tmp_path), lr=1e9, epochs=3))


def with_split(small, folder, change):
    "Settings with the split that `change` makes of an even one."
    manifest = pd.read_csv(Path(small.tensor_dir)/'manifest.csv')
    split = manifest[['patient_id', 'side', 'label']].assign(split=['train', 'train', 'val', 'test']*(len(manifest)//4) + ['train']*(len(manifest) % 4))
    change(split).to_csv(folder/'split.csv', index=False)
    return replace(small, run_dir=str(folder/'run'), splits_csv=str(folder/'split.csv'))


def test_class_absent_from_training(small, tmp_path):
    def change(split):
        split.loc[(split.split == 'train') & (split.label == 1), 'split'] = 'test'
        return split
    run = fit(with_split(small, tmp_path, change))
    assert run.history.train_auc.isna().all() and run.history.train_loss.notna().all()
    assert set(run.predictions[run.predictions.split == 'train'].label) == {0, 2}


def test_one_breast_to_train(small, tmp_path):
    def change(split):
        first = split.index[split.split == 'train'][0]
        split.loc[(split.split == 'train') & (split.index != first), 'split'] = 'test'
        return split
    run = fit(with_split(small, tmp_path, change))
    assert (run.predictions.split == 'train').sum() == 1 and len(run.history) == 1


def test_batch_larger_than_the_set(small, tmp_path):
    assert len(fit(replace(small, run_dir=str(tmp_path), batch_size=1000)).history) == 1
