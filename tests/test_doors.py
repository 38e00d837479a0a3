"Extensions of CONTRIBUTING.md: a backbone, a score, views, a data set, a recipe."
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd
import pytest

from cesm_nb import data
from cesm_nb.cohort.quality import write_report
from cesm_nb.data import DataSet, read_dataset
from cesm_nb.core.recipes import RECIPES
from cesm_nb.core.settings import CONFIGS, TrainConfig, make_config
from cesm_nb.core.terms import CHANNELS
from cesm_nb.training.inference import load_run, predict_run
from cesm_nb.tensorize import read_tensor
from cesm_nb.train import fit
from conftest import PATIENCE, ROOT

SMALL = dict(image_size=32, epochs=1, batch_size=16, device='cpu', mixed_precision='no')
BOTH = ('DM CC', 'DM MLO', 'CM CC', 'CM MLO')


def path_first(folder):
    "An environment in which modules of `folder` take precedence."
    return os.environ | {'PYTHONPATH': str(folder)}


def train(phantom, tmp_path, **change):
    run = fit(TrainConfig(data_root=str(phantom), run_dir=str(tmp_path/'run'), **SMALL | change))
    assert np.isfinite(run.predictions.filter(like='p_')).all(axis=None)
    return run


def test_backbone_is_selected_by_name(phantom, tmp_path):
    run = train(phantom, tmp_path, backbones='mobilenetv3_small_050,mobilenetv2_100')
    assert list(load_run(run.run_dir)[0].streams) == ['mobilenetv3_small_050', 'mobilenetv2_100']


ADDED = '''MORE_SCORES = dict( # name -> function; another score is one line here
    spherical=lambda label, prob, weights: weights @ (
        prob[np.arange(len(label)), label]/np.linalg.norm(prob, axis=1))/weights.sum(1),
    '''
TRY_SCORE = '''
from cesm_nb.stats.compare import repeated_interval
from cesm_nb.core.terms import PROBS
from cesm_nb.stats.intervals import interval_table
from cesm_nb.synthetic.predictions import simulate_predictions
from cesm_nb.reporting.tables import compare_paired, write_table
a, b = simulate_predictions(20), simulate_predictions(20, model=1)
label, prob, patients = (a[k].to_numpy() for k in ('label', PROBS, 'patient_id'))
table = interval_table(label, prob, patients, 50)
row = table.loc['spherical']
assert 0 < row.low < row.value < row.high < 1 and not row.note, row
repeated = repeated_interval(label, prob[None], patients, n_draws=50).loc['spherical']
assert repeated.low < repeated.value < repeated.high, repeated
paired = compare_paired(dict(a=a, b=b), 50).loc[('b', 'spherical')]
assert paired.low < paired.difference < paired.high, paired
write_table(table, 'scores')
'''


def test_new_score_is_one_table_line(tmp_path):
    "With one more line in a copy of stats.scores, every table has the score."
    from nbdev.export import nb_export
    shutil.copytree(ROOT/'cesm_nb', tmp_path/'cesm_nb',
                    ignore=shutil.ignore_patterns('__pycache__'))
    notebook = Path('nbs')/'api'/'stats.scores.ipynb'
    cells = (ROOT/notebook).read_text()
    old = ADDED.splitlines()[0] + '\n    '
    quoted = lambda text: text.replace('\n', '\\n",\n    "')
    assert quoted(old) in cells
    (tmp_path/notebook).parent.mkdir(parents=True)
    (tmp_path/notebook).write_text(cells.replace(quoted(old), quoted(ADDED), 1))
    nb_export(tmp_path/notebook, tmp_path/'cesm_nb')
    done = subprocess.run([sys.executable, '-c', TRY_SCORE], cwd=tmp_path, capture_output=True,
                          text=True, timeout=PATIENCE, env=path_first(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path/'scores.md').read_text().count('| spherical') == 1


GREYS = '''
from dataclasses import dataclass
from typing import Literal
import pandas as pd
import torch
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from cesm_nb.core.files import write_atomic
from cesm_nb.core.recipes import Fitted, Recipe
from cesm_nb.core.runs import BEST
from cesm_nb.core.settings import TrainConfig
from cesm_nb.training.losses import name_scores

@dataclass(frozen=True)
class GreysConfig(TrainConfig):
    "Settings of the mean grey levels."
    title = 'the mean grey levels'
    model:Literal['greys'] = 'greys'
    strength:float = 1.0 # inverse of the penalty on the weights

class Greys(torch.nn.Linear):
    weights_source = 'fitted to grey levels'
    def __init__(self):
        super().__init__(2, 3)
        self.settings = dict(model='greys')

means = lambda data: data.views.float().mean((2, 3))/255

def fit(model, data, parts, cfg, job):
    of = parts['train']
    found = LogisticRegression(C=cfg.strength).fit(means(data)[of], data.label[of])
    model.load_state_dict({k: torch.tensor(v).float() for k, v in
                           [('weight', found.coef_), ('bias', found.intercept_)]})
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomic(job.checkpoints/BEST, save(model.state_dict()))
    logits, row = predict(model, data, torch.arange(len(data.label))), dict(epoch=1, lr=cfg.lr)
    for k in ('train', 'val'):
        label, prob = data.label[parts[k]].numpy(), logits[parts[k]].softmax(1).numpy()
        row |= {f'{k}_loss': 0.} | name_scores(k, label, prob)
    return Fitted(pd.DataFrame([row]), 1, logits)

def predict(model, data, index, dtype=None):
    with torch.no_grad(): return model(means(data))[index]

RECIPE = Recipe(lambda *args: None, lambda settings, switches, **start: Greys(), fit, predict)
'''


def test_new_recipe_is_one_module(phantom, tmp_path, monkeypatch):
    "A module, its line in RECIPES, its settings in CONFIGS and its name in Model."
    (tmp_path/'greys.py').write_text(GREYS)
    monkeypatch.syspath_prepend(tmp_path)
    greys = importlib.import_module('greys')
    monkeypatch.setitem(RECIPES, 'greys', 'greys')
    monkeypatch.setitem(CONFIGS, 'greys', greys.GreysConfig)
    monkeypatch.setattr(TrainConfig.__dataclass_fields__['model'], 'type',
                        Literal['four_stream', 'probe', 'greys']) # as in core.settings
    settings = SMALL | dict(data_root=str(phantom), run_dir=str(tmp_path/'run'))
    run = fit(make_config(settings | dict(model='greys', strength=2.)))
    again = predict_run(tmp_path/'run')
    pd.testing.assert_frame_equal(again, run.predictions, check_exact=False, atol=1e-6)
    assert run.config['settings']['strength'] == 2. and (tmp_path/'run'/'status.json').exists()
    with pytest.raises(ValueError, match='strength=2.0 only applies to the mean grey levels'):
        make_config(settings | dict(strength=2.))
    with pytest.raises(ValueError, match="pooling='mean' only applies to the linear probe"):
        make_config(settings | dict(model='greys', pooling='mean'))


def test_four_views_by_setting(phantom, tmp_path):
    "Low energy and subtracted images together, two views each."
    run = train(phantom, tmp_path, modality='DM+CM', backbones='mobilenetv2_100')
    model, config = load_run(run.run_dir)
    assert model.streams.views == BOTH and config['settings']['modality'] == 'DM+CM'
    manifest = pd.read_csv(run.run_dir/'manifest.csv')
    has = [c for c in manifest if c.startswith('has_')]
    assert has == ['has_dm_cc', 'has_dm_mlo', 'has_cm_cc', 'has_cm_mlo']
    tensor = read_tensor(run.run_dir/'tensors'/manifest.file[0])
    assert tensor['x'].shape == (5, 32, 32) and tensor['real'].shape == (4,)


def test_third_view_is_one_table_row(phantom, tmp_path, monkeypatch):
    monkeypatch.setitem(CHANNELS, 'three', (('CM', 'CC'), ('CM', 'MLO'), ('DM', 'CC')))
    monkeypatch.setattr(TrainConfig.__dataclass_fields__['modality'], 'type',
                        Literal['CM', 'DM', 'DM+CM', 'three']) # as in core.settings
    run = train(phantom, tmp_path, modality='three', protocol='clinical',
                backbones='mobilenetv2_100')
    assert load_run(run.run_dir)[0].streams.views == ('CM CC', 'CM MLO', 'DM CC')


def read_flat(root, regions='', with_images=True):
    "A synthetic layout: files named PATIENT-side-view.png, beside a JSON of diagnoses."
    if not (root/'diagnoses.json').is_file():
        raise FileNotFoundError(f'{root} lacks diagnoses.json')
    diagnoses, rows = json.loads((root/'diagnoses.json').read_text()), []
    for path in sorted(root.glob('*.png')):
        patient, side, view = path.stem.split('-')
        label = data.CLASSES.index(diagnoses[patient])
        row = dict(image_name=path.stem, patient_id=int(patient), side=side, modality='CM',
                   view=view, copy=1, age_years=50., density='B', birads='',
                   pathology=data.CLASSES[label], label=label, machine='', findings='',
                   trailing_blank=False, path=str(path), original_width_px=40,
                   original_height_px=60, n_regions=0)
        rows.append(row)
    no_regions = pd.DataFrame(columns=['image_name', 'shape', 'geometry'])
    return DataSet(root, pd.DataFrame(rows), no_regions, {}, False, 'made-up')


@pytest.fixture
def flat(tmp_path, monkeypatch):
    root = tmp_path/'flat'
    root.mkdir()
    (root/'diagnoses.json').write_text(json.dumps({str(i): data.CLASSES[i % 3] for i in range(24)}))
    rng = np.random.default_rng(0)
    for i in range(24):
        for view in data.VIEWS:
            image = rng.integers(0, 255, (60, 40), dtype=np.uint8)
            cv2.imwrite(str(root/f'{i}-L-{view}.png'), image)
    monkeypatch.setitem(data.READERS, 'flat', read_flat)
    return root


def test_new_data_set_is_one_reader(flat, tmp_path):
    assert len(read_dataset(flat).images) == 48
    assert Path(write_report(flat, tmp_path/'page')).is_file()
    run = train(flat, tmp_path, protocol='clinical', backbones='mobilenetv2_100')
    assert len(run.predictions) == 24 and run.config['phantom'] is False
    assert run.config['data_fingerprint'] == 'made-up'


def test_unknown_folder_layout_is_rejected(flat, tmp_path):
    "Each reader reports what is missing."
    message = 'lacks the annotation sheet.*; or .*lacks diagnoses.json'
    with pytest.raises(FileNotFoundError, match=message): read_dataset(tmp_path)
    with pytest.raises(ValueError, match='no region file'): train(flat, tmp_path, protocol='paper')
