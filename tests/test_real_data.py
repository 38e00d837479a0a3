"Facts about the real annotation files, as published and as measured; any subset of the images."
import json
from itertools import islice

import cv2
import numpy as np
import pandas as pd
import pytest

from cesm_nb.core.terms import PROBS
from cesm_nb.imaging.decode import read_image
from cesm_nb import data, roi
from cesm_nb.experiments import publish as results
from cesm_nb.stats import scores as stats
from cesm_nb.cohort import quality
from cesm_nb.cohort import splits
from conftest import REAL, ROOT, needs_data

pytestmark = needs_data

FACTS = {
    'rows': 2006, 'patients': 326, 'images in the sheet (CM)': 1003,
    'images in the sheet (DM)': 1003, 'images normal': 757, 'images benign': 587,
    'images malignant': 662, 'rows without density (CM)': 1001, 'rows without density (DM)': 81,
    'breasts': 566, 'breasts normal (all rows)': 189, 'breasts benign (all rows)': 194,
    'breasts malignant (all rows)': 183, 'breasts normal (CM)': 235, 'breasts benign (CM)': 148,
    'breasts malignant (CM)': 183, 'breasts normal (DM)': 191, 'breasts benign (DM)': 192,
    'breasts malignant (DM)': 183, 'breasts with a label conflict (all rows)': 50,
    'breasts with a label conflict (CM)': 2, 'breasts with a label conflict (DM)': 5,
    'breasts with both views': 435, 'breasts with one view': 131,
    'breasts with density from own rows': 518, 'breasts with density, other breast included': 551,
    'breasts without density on own rows: normal': 1,
    'breasts without density on own rows: benign': 34,
    'breasts without density on own rows: malignant': 13, 'regions': 2971,
    'images with a region': 1233, 'regions: polygon': 2028, 'regions: ellipse': 598,
    'regions: circle': 331, 'regions: polyline': 10, 'regions: point': 4,
    'abnormal images without a region': 24, 'normal images with a region': 8,
    'breasts where "has a region" means abnormal, % (CM)': 99.3,
    'names: trailing blank in the name': 5, 'names: second copy of a view': 4,
}


@pytest.fixture(scope='module')
def report(): return quality.quality_report(REAL)


@pytest.fixture(scope='module')
def images(): return data.read_dataset(REAL).images


@pytest.mark.parametrize('fact', FACTS)
def test_annotation_fact(report, fact): assert report[0][fact] == FACTS[fact]


@pytest.mark.parametrize('modality', ['CM', 'DM'])
def test_absent_images_are_listed(report, modality):
    facts = report[0]
    present, absent = f'image files present ({modality})', f'names: file absent ({modality})'
    assert facts[present] + facts.get(absent, 0) == 1003


def test_odd_names(report):
    odd = report[1].groupby('kind').image_name.apply(set)
    assert odd['trailing blank in the name'] == {
        'P3_L_CM_CC', 'P4_L_DM_MLO', 'P4_L_CM_MLO', 'P10_R_DM_CC', 'P10_R_DM_MLO'}
    assert odd['second copy of a view'] == {
        'P99_L_DM_MLO_2', 'P99_L_CM_MLO_2', 'P281_L_DM_MLO2', 'P281_L_CM_MLO2'}


def test_breast_tables(images):
    for scope, counts in [('modality', [235, 148, 183]), ('breast', [189, 194, 183])]:
        table = data.breasts(images, 'CM', scope)
        assert table.label.value_counts().sort_index().tolist() == counts
    assert len(table) == 566 and not data.read_dataset(REAL).phantom


def test_trailing_blank_finds_its_file(images):
    row = images[images.image_name == 'P3_L_CM_CC'].iloc[0]
    assert row.path.endswith('P3_L_CM_CC .jpg') and row.original_width_px > 512


def test_split_by_breast_shares_patients(images):
    table = data.breasts(images)
    by_breast = [splits.share_with_contralateral(splits.make_splits(table, 'breast', seed))
                 for seed in range(5)]
    assert .5 < sum(by_breast)/5 < .7 # design: 60 %
    assert splits.share_with_contralateral(splits.make_splits(table, 'patient')) == 0


def regions_of(images, modality='CM'):
    "Available images with regions, with outlines in the file's pixels."
    outlines = data.read_dataset(REAL).regions.groupby('image_name').geometry.apply(list)
    drawn = images.path.notna() & images.image_name.isin(outlines.index)
    for row in images[(images.modality == modality) & drawn].itertuples():
        image, original = read_image(row.path), (row.original_width_px, row.original_height_px)
        scaled, _ = roi.scaled_outlines(outlines[row.image_name], image.shape, original)
        yield image, scaled, original


def test_opencv_clip_limit(images, monkeypatch):
    "Record the arguments of `createCLAHE` and `apply` per region, and OpenCV's result."
    limits, reported = [], []
    class Spy:
        def __init__(self, clip, grid): self.clip, self.grid = clip, grid
        def apply(self, image):
            limits.append(roi.effective_clip(image.shape, self.clip, max(self.grid)))
            return image
    monkeypatch.setattr(roi.cv2, 'createCLAHE', Spy)
    for image, outlines, original in regions_of(images):
        roi.clahe_within(image, outlines, original_px=original)
        reported += roi.region_clips(outlines, image.shape, original_px=original)
    within = np.abs(np.array(limits)/2 - 1) <= roi.CLIP_TOLERANCE
    print(f'{within.mean():.1%} of {len(within)} regions within {roi.CLIP_TOLERANCE:.0%} of 2.0')
    assert limits == reported and len(limits) > 900 and within.mean() >= .95


def test_reduced_copy_is_as_bright_as_the_original(images):
    "Mean grey of enlarged images: equalised then reduced, against reduced then equalised."
    gaps, plain = [], []
    for image, outlines, original in islice(regions_of(images), 0, None, 20):
        size, shape = tuple(int(n) for n in original), image.shape
        inside = roi.roi_mask(outlines, shape) > 0
        full = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        enhanced = roi.clahe_within(full, [p*np.array(size)/shape[::-1] for p in outlines])
        copy, expected = (cv2.resize(im, shape[::-1], interpolation=cv2.INTER_AREA)
                          for im in (full, enhanced))
        gap = lambda im: float(im[inside].mean()) - float(expected[inside].mean())
        gaps.append(gap(roi.clahe_within(copy, outlines, original_px=size)))
        plain.append(gap(plain_clahe(copy, outlines)))
    assert len(gaps) > 20 and np.isfinite(gaps).all()
    mean, absolute, without = np.mean(gaps), np.mean(np.abs(gaps)), np.mean(np.abs(plain))
    assert abs(mean) < 2 and absolute < 3 < without, (mean, np.mean(plain))


def plain_clahe(image, outlines):
    "Apply OpenCV to each region's box as it is."
    out = image.copy()
    for points in outlines:
        box = roi._box(points, image.shape)
        equalised = cv2.createCLAHE(2., (8, 8)).apply(image[box].copy())
        np.copyto(out[box], equalised, where=roi.roi_mask([points], image.shape)[box] > 0)
    return out


PUBLISHED = sorted(f.parent for f in (ROOT/'results').rglob('predictions.csv.gz'))


@pytest.mark.parametrize('folder', PUBLISHED, ids=lambda f: f.name)
def test_published_scores_follow_from_published_predictions(folder):
    "With the sheet, published probabilities give the published scores; no images needed."
    settings = json.loads((folder/'settings.json').read_text())
    tests = results.read_predictions_of_grid(folder, data.read_dataset(REAL), settings)
    stored = pd.read_csv(folder/'scores.csv').set_index(['variant', 'score'])
    def scores_of(t):
        ones = np.ones((1, len(t)))
        return stats.weighted_scores(t.label.to_numpy(), t[PROBS].to_numpy(), ones)
    for variant, seeds in tests.items():
        for name in ('auc', 'accuracy', 'auc_malignant', 'macro_f1'):
            values = {seed: scores_of(t)[name][0] for seed, t in seeds.items()}
            rows = stored.loc[(variant, name)]
            if 'seed' in stored: # one test set for each
                assert values == pytest.approx(rows.set_index('seed').value.to_dict(), abs=1e-9)
            else: assert np.mean([*values.values()]) == pytest.approx(rows.value, abs=1e-9)
