"What CONTRIBUTING.md promises: a backbone, another stack of views, another data set, each through one public place."
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cesm_nb import data
from cesm_nb.check import write_report
from cesm_nb.data import CHANNELS, DataSet, read_dataset
from cesm_nb.finished import load_run
from cesm_nb.settings import TrainConfig
from cesm_nb.tensorize import read_tensor
from cesm_nb.train import fit

SMALL = dict(image_size=32, epochs=1, batch_size=16, device='cpu', mixed_precision='no')
BOTH = ('DM CC', 'DM MLO', 'CM CC', 'CM MLO')


def train(phantom, tmp_path, **change):
    run = fit(TrainConfig(data_root=str(phantom), run_dir=str(tmp_path/'run'), **SMALL | change))
    assert np.isfinite(run.predictions.filter(like='p_')).all(axis=None)
    return run


def test_another_backbone_is_its_name(phantom, tmp_path):
    run = train(phantom, tmp_path, backbones='mobilenetv3_small_050,mobilenetv2_100')
    assert list(load_run(run.run_dir)[0].streams) == ['mobilenetv3_small_050', 'mobilenetv2_100']


def test_four_views_are_a_setting(phantom, tmp_path):
    "Low energy and subtracted images together, two views each."
    run = train(phantom, tmp_path, modality='DM+CM', backbones='mobilenetv2_100')
    model, config = load_run(run.run_dir)
    assert model.streams.views == BOTH and config['settings']['modality'] == 'DM+CM'
    manifest = pd.read_csv(run.run_dir/'manifest.csv')
    assert [c for c in manifest if c.startswith('has_')] == ['has_dm_cc', 'has_dm_mlo', 'has_cm_cc', 'has_cm_mlo']
    tensor = read_tensor(run.run_dir/'tensors'/manifest.file[0])
    assert tensor['x'].shape == (5, 32, 32) and tensor['real'].shape == (4,)


def test_a_third_view_is_a_row_of_the_table(phantom, tmp_path, monkeypatch):
    monkeypatch.setitem(CHANNELS, 'three', (('CM', 'CC'), ('CM', 'MLO'), ('DM', 'CC')))
    run = train(phantom, tmp_path, modality='three', protocol='clinical', backbones='mobilenetv2_100')
    assert load_run(run.run_dir)[0].streams.views == ('CM CC', 'CM MLO', 'DM CC')


def read_flat(root, regions='', with_images=True):
    "A made-up layout: files are called WOMAN-side-view.png, beside a JSON of diagnoses."
    if not (root/'diagnoses.json').is_file(): raise FileNotFoundError(f'{root} lacks diagnoses.json')
    rows = []
    for path in sorted(root.glob('*.png')):
        woman, side, view = path.stem.split('-')
        label = data.CLASSES.index(json.loads((root/'diagnoses.json').read_text())[woman])
        rows.append(dict(
            image_name=path.stem, patient_id=int(woman), side=side, modality='CM', view=view, copy=1, age_years=50., density='B',
            birads='', pathology=data.CLASSES[label], label=label, machine='', findings='', trailing_blank=False, path=str(path),
            original_width_px=40, original_height_px=60, n_regions=0))
    none = pd.DataFrame(columns=['image_name', 'shape', 'geometry'])
    return DataSet(root, pd.DataFrame(rows), none, {}, False, 'made-up')


@pytest.fixture
def flat(tmp_path, monkeypatch):
    root = tmp_path/'flat'
    root.mkdir()
    (root/'diagnoses.json').write_text(json.dumps({str(i): data.CLASSES[i % 3] for i in range(24)}))
    rng = np.random.default_rng(0)
    for i in range(24):
        for view in data.VIEWS: cv2.imwrite(str(root/f'{i}-L-{view}.png'), rng.integers(0, 255, (60, 40), dtype=np.uint8))
    monkeypatch.setitem(data.READERS, 'flat', read_flat)
    return root


def test_another_data_set_is_a_reader(flat, tmp_path):
    assert len(read_dataset(flat).images) == 48
    assert Path(write_report(flat, tmp_path/'page')).is_file()
    run = train(flat, tmp_path, protocol='clinical', backbones='mobilenetv2_100')
    assert (run.config['data_fingerprint'], run.config['phantom'], len(run.predictions)) == ('made-up', False, 24)


def test_a_folder_that_no_reader_knows(flat, tmp_path):
    "Each reader says what it missed."
    with pytest.raises(FileNotFoundError, match='lacks the annotation sheet.*; or .*lacks diagnoses.json'): read_dataset(tmp_path)
    with pytest.raises(ValueError, match='no region file'): train(flat, tmp_path, protocol='paper')
