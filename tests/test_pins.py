"Predictions of a small run stored in `tests/pins/`: numerics and formats change only on purpose."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from make_pins import HERE, find_processor, make_apart

from cesm_nb.core.terms import CLASSES
from cesm_nb.tensorize import read_tensor
from cesm_nb.core.settings import make_config
from cesm_nb.train import fit

PROTOCOLS = ['paper', 'clinical']
# rounding differs between kinds of processors
EXACT = (HERE/'pins'/'processor.txt').read_text().strip() == find_processor()


@pytest.fixture(scope='module')
def today(module_path):
    "Both runs, made by the current code in the arithmetic of the files."
    out = module_path
    make_apart(out)
    return out


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_predictions_match_the_pinned_run(today, protocol):
    "To 1e-6 on the same kind of processor, from tensors to probabilities, after two epochs."
    was, now = (pd.read_csv(d/protocol/'predictions.csv') for d in (HERE/'pins', today))
    probs = [f'p_{c.lower()}' for c in CLASSES]
    pd.testing.assert_frame_equal(now.drop(columns=probs), was.drop(columns=probs))
    np.testing.assert_allclose(now[probs], was[probs], rtol=0, atol=1e-6 if EXACT else 5e-3)
    assert np.ptp(was[probs].to_numpy(), axis=0).max() > 1e-4 # predictions differ between breasts
    was, now = (pd.read_csv(d/protocol/'history.csv') for d in (HERE/'pins', today))
    losses = ['epoch', 'lr', 'train_loss', 'val_loss']
    np.testing.assert_allclose(now[losses], was[losses], rtol=1e-5 if EXACT else .02)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_tensors_match_the_pinned_run(today, protocol):
    "Pixel by pixel, and in the stored format."
    was, now = (read_tensor(d/protocol/'tensor.torch') for d in (HERE/'pins', today))
    assert set(now) == set(was)
    torch.testing.assert_close(now['x'], was['x'], rtol=0, atol=1e-6 if EXACT else 1.5/255)
    for key in ('label', 'patient_id', 'side'): assert now[key] == was[key], key
    a, b = (pd.read_csv(d/protocol/'manifest.csv') for d in (HERE/'pins', today))
    pd.testing.assert_frame_equal(b, a)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_settings_of_the_pinned_run_still_load(protocol):
    "The settings of an old run folder are read, field by field."
    stored = json.loads((HERE/'pins'/protocol/'config.json').read_text())['settings']
    cfg = make_config(stored)
    assert {k: getattr(cfg, k) for k in stored} == stored


def test_pinned_run_resumes_or_is_rejected(tmp_path, today):
    "Different settings are reported; the same settings load the finished run."
    run = tmp_path/'run'
    shutil.copytree(today/'runs'/'paper', run)
    stored = json.loads((run/'config.json').read_text())['settings'] | dict(run_dir=str(run))
    again = fit(make_config(stored))
    assert len(again.history) == 2 # nothing was trained again
    with pytest.raises(ValueError, match='lr') as e: fit(make_config(stored | dict(lr=.5)))
    assert '\n' not in str(e.value)
