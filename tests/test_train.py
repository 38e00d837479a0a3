"Training that is killed, misconfigured, reduced or moved: it resumes exactly, works or reports."
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from cesm_nb import train as trainer
from cesm_nb.model import ABLATIONS
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import tensorize
from cesm_nb.training.inference import load_run, predict_run
from cesm_nb.core.settings import make_config
from cesm_nb.train import fit
from conftest import forked
from mortal import die_at

SMALL = dict(image_size=32, epochs=1, batch_size=16, device='cpu', mixed_precision='no')


@pytest.fixture(scope='module')
def small(phantom, module_path):
    "Settings of a short run whose tensors are shared."
    return make_config(SMALL | dict(data_root=str(phantom), tensor_dir=str(module_path/'tensors')))


def train(phantom, folder, name, n=0):
    "Train in a process killed at event n of its steps and renamings; return exit code and events."
    cfg = make_config(dict(
        data_root=str(phantom), tensor_dir=str(folder/'tensors'), run_dir=str(folder/name),
        image_size=32, epochs=6, batch_size=8, lr=1e-3, device='cpu', mixed_precision='no',
        backbones='lcnet_035'))
    def work():
        events = die_at(n, (trainer, 'train_step'), (os, 'replace'))
        trainer.fit(cfg)
        (folder/'events').write_text(str(events()))
    code = forked(work)
    assert code in (0, -signal.SIGKILL), code
    return code, None if code else int((folder/'events').read_text())


def results(run_dir):
    "Files of a run, byte by byte."
    files = ('checkpoints/best.safetensors', 'history.csv', 'predictions.csv')
    return {f: (run_dir/f).read_bytes() for f in files}


def weights(run_dir):
    "The last weights of a run."
    return torch.load(run_dir/'checkpoints'/'last'/'state.pt', weights_only=True)['model']


def test_training_killed_at_five_random_events(phantom, tmp_path):
    "Killed at a step or a renaming, in the first or second epoch of a session: the same bytes."
    tensorize(TensorConfig(data_root=str(phantom), run_dir=str(tmp_path),
                           tensor_dir=str(tmp_path/'tensors'), image_size=32))
    code, events = train(phantom, tmp_path, 'whole')
    assert code == 0
    # each session stores at most one epoch, so five leave one of six
    epoch, draw, kept = events // 6, random.Random(0), []
    for i in range(5):
        n = draw.randint(1, epoch) if i % 2 == 0 else draw.randint(3*epoch//2, 2*epoch)
        assert train(phantom, tmp_path, 'cut', n)[0] == -signal.SIGKILL, f'event {n} of {events}'
        state = tmp_path/'cut'/'checkpoints'/'last'/'state.pt'
        kept.append(len(torch.load(state, weights_only=True)['history']) if state.exists() else 0)
    assert kept[0] == 0 and 2 <= kept[-1] < 6, kept
    assert train(phantom, tmp_path, 'cut')[0] == 0
    assert results(tmp_path/'cut') == results(tmp_path/'whole')
    last, whole = weights(tmp_path/'cut'), weights(tmp_path/'whole')
    assert all(torch.equal(last[k], v) for k, v in whole.items())


@pytest.mark.parametrize('name', ABLATIONS)
def test_every_ablation_trains(small, tmp_path, name):
    run = fit(replace(small, run_dir=str(tmp_path), **ABLATIONS[name]))
    assert len(run.history) == 1 and run.predictions.filter(like='p_').notna().all(axis=None)
    model, _ = load_run(tmp_path) # its settings are enough to rebuild it
    assert sum(p.numel() for p in model.parameters()) == run.config['n_parameters']


def test_run_folder_is_self_contained(tmp_path):
    settings = dict(run_dir=str(tmp_path/'run'), protocol='clinical', phantom_patients=24)
    run = fit(make_config(SMALL | settings))
    written = (tmp_path/'run'/'predictions.csv').read_text()
    shutil.rmtree(tmp_path/'run'/'phantom') # images, sheet, regions
    (tmp_path/'run').rename(tmp_path/'elsewhere')
    assert predict_run(tmp_path/'elsewhere', device='cpu').to_csv(index=False) == written
    assert not Path(run.config['settings']['tensor_dir']).exists()


def test_nan_loss_keeps_the_last_epoch(small, tmp_path):
    fit(replace(small, run_dir=str(tmp_path)))
    kept = weights(tmp_path)
    state = torch.load(tmp_path/'checkpoints'/'last'/'state.pt', weights_only=True)
    state['opt']['param_groups'][0]['lr'] = float('nan')
    torch.save(state, tmp_path/'checkpoints'/'last'/'state.pt')
    message = r'loss is nan at epoch 2, batch \d+ of \d+.*epoch 1 is kept'
    with pytest.raises(FloatingPointError, match=message):
        fit(replace(small, run_dir=str(tmp_path), epochs=2))
    after = weights(tmp_path)
    assert all(torch.equal(after[k], v) for k, v in kept.items())


def test_excessive_learning_rate(small, tmp_path):
    "A step of 1e30 in each weight: the next batch overflows single precision on any machine."
    message = (r'loss is (nan|inf) at epoch 1, .*: lower lr \(1e\+30\) in another run_dir; '
               'no epoch is kept')
    with pytest.raises(FloatingPointError, match=message):
        fit(replace(small, run_dir=str(tmp_path), lr=1e30, epochs=3))


def with_split(small, folder, change):
    "Settings with an even split modified by `change`."
    manifest = pd.read_csv(Path(small.tensor_dir)/'manifest.csv')
    n, rest = divmod(len(manifest), 4)
    parts = ['train', 'train', 'val', 'test']*n + ['train']*rest
    split = manifest[['patient_id', 'side', 'label']].assign(split=parts)
    change(split).to_csv(folder/'split.csv', index=False)
    return replace(small, run_dir=str(folder/'run'), splits_csv=str(folder/'split.csv'))


def test_class_absent_from_training(small, tmp_path):
    def change(split):
        split.loc[(split.split == 'train') & (split.label == 1), 'split'] = 'test'
        return split
    run = fit(with_split(small, tmp_path, change))
    assert run.history.train_auc.isna().all() and run.history.train_loss.notna().all()
    assert set(run.predictions[run.predictions.split == 'train'].label) == {0, 2}


def test_single_training_breast(small, tmp_path):
    def change(split):
        first = split.index[split.split == 'train'][0]
        split.loc[(split.split == 'train') & (split.index != first), 'split'] = 'test'
        return split
    run = fit(with_split(small, tmp_path, change))
    assert (run.predictions.split == 'train').sum() == 1 and len(run.history) == 1


def test_batch_larger_than_the_set(small, tmp_path):
    assert len(fit(replace(small, run_dir=str(tmp_path), batch_size=1000)).history) == 1
