"""Count how many altered test breasts the checks of cases.ood flag, beside false rejections.

    python tools/count_ood.py RUN [RUN ...] [--data FOLDER] [--sample N] [--out FILE]

Each test breast is read from its files like a case and checked as it is (a flag is a false
rejection), with its images of the other energy if they exist, and altered in each way of `KINDS`.
With --sample only N random breasts of the first run are altered. Runs, such as the folds of a
cross-validation, are pooled. --out writes the counts as CSV: nothing of a single patient. For the
released model see make_released.py, which uses this one's functions."""
import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from cesm_nb.cases.subgroups import read_own
from cesm_nb.cases.prepare import open_member, prepare_case
from cesm_nb.data import breasts, read_dataset
from cesm_nb.imaging.dicom import read_case
from cesm_nb.cases.ood import REASONS, find_rejections, fit_training
from cesm_nb.stats.intervals import patient_share
from cesm_nb.core.runs import read_config

AS_IT_IS, OTHER_ENERGY = 'as it is', 'the other energy'
NAMES = dict(CM='low energy as subtracted', DM='subtracted as low energy')


def each(change): return lambda own: {k: np.ascontiguousarray(change(v)) for k, v in own.items()}


def pairs(change): return lambda own: change(own) if len(own) == 2 else None


def swap(own):
    "The images of two views, exchanged."
    one, two = own
    return {one: own[two], two: own[one]}


def crop(image, share):
    "The middle of an image, as after zooming in."
    h, w = image.shape
    y, x = int(h*(1 - share)/2), int(w*(1 - share)/2)
    return image[y:h - y, x:w - x]


KINDS = { # alteration -> function of the images by view; None where it does not apply
    AS_IT_IS: each(lambda v: v), 'mirrored left to right': each(lambda v: v[:, ::-1]),
    'upside down': each(lambda v: v[::-1]), 'on its side': each(lambda v: np.rot90(v)),
    'CC and MLO swapped': pairs(swap),
    'one view twice': pairs(lambda own: dict.fromkeys(own, next(iter(own.values())))),
    'upper half alone': each(lambda v: v[:v.shape[0] // 2]),
    'middle 70 % of each side': each(lambda v: crop(v, .7)),
    'grey levels inverted': each(lambda v: 255 - v),
    'twice as bright': each(lambda v: cv2.convertScaleAbs(v, alpha=2))}


def list_paths(images, modality):
    "(patient_id, side) -> view -> path of the existing images, the first copy of each."
    t = images[(images.modality == modality) & images.path.notna()].sort_values('copy')
    return {k: dict(zip(g.view[::-1], g.path[::-1])) for k, g in t.groupby(['patient_id', 'side'])}


def read_images(paths):
    "View -> image."
    return {v.view: v.image for v in read_case([*paths.values()]).views.values()}


def replace_images(case, images):
    "The case with other images: view -> image."
    return case._replace(views={k: v._replace(image=images[v.view]) for k, v in case.views.items()})


def alter(case, other):
    "Kind -> altered case; `other`: paths of the images of the other energy by view."
    own = {v.view: v.image for v in case.views.values()}
    found = {k: change(own) for k, change in KINDS.items()}
    if set(own) <= set(other): found[OTHER_ENERGY] = read_images({v: other[v] for v in own})
    return {k: replace_images(case, images) for k, images in found.items() if images is not None}


def flag_cases(member, training, images, table, altered):
    "A row per breast of `table` (those in `altered` altered) and kind: patient_id, flags."
    modality, rows = member.preparation['tensors']['modality'], []
    paths, other_paths = (list_paths(images, m) for m in (modality, *(NAMES.keys() - {modality})))
    for i, b in enumerate(tqdm(table.to_dict('records'), member.name, unit='breast')):
        key, density = (b['patient_id'], b['side']), b['density']
        case = read_case([*paths[key].values()], age_years=b['age_years'],
                         density=density if isinstance(density, str) else '')
        cases = alter(case, other_paths.get(key, {}))
        if i not in altered: cases = {k: cases[k] for k in (AS_IT_IS, OTHER_ENERGY) if k in cases}
        prepared = [prepare_case(c, member) for c in cases.values()]
        found = find_rejections(member, training, prepared, [case.side]*len(cases))
        for kind, (sentences, _) in zip(cases, found):
            flags = {k: any(words in s for s in sentences) for k, words in REASONS.items()}
            name = NAMES[modality] if kind == OTHER_ENERGY else kind
            rows.append(dict(kind=name, patient_id=key[0]) | flags)
    return pd.DataFrame(rows)


def flag_breasts(run, data_root, sample=None):
    "A row per test breast (`sample` of them altered) and kind: patient_id, flag of each reason."
    member = open_member(run)
    modality = member.preparation['tensors']['modality']
    if modality not in NAMES:
        raise SystemExit(f'{run} is of modality {modality!r}: name runs of one energy')
    own = read_own(member)
    training = fit_training(member, own)
    images = read_dataset(data_root or read_config(run)['settings']['data_root']).images
    test = own.table.query("split == 'test'")[['patient_id', 'side']]
    table = breasts(images, modality).merge(test)
    n_altered = len(table) if sample is None else min(len(table), sample)
    altered = set(table.sample(n_altered, random_state=0).index)
    return flag_cases(member, training, images, table, altered)


def count(flags):
    "Kind -> breasts, patients, number flagged with an interval by patient, number by each check."
    out = {}
    for kind, t in flags.groupby('kind', sort=False):
        flagged = t[[*REASONS]].any(axis=1)
        share, low, high = patient_share(flagged.to_numpy(), t.patient_id)
        out[kind] = dict(breasts=len(t), patients=t.patient_id.nunique(),
                         flagged=int(flagged.sum()), share=share, low=low, high=high)
        out[kind] |= {k: int(t[k].sum()) for k in REASONS}
    types = dict.fromkeys(('breasts', 'patients', 'flagged', *REASONS), int)
    types |= dict.fromkeys(('share', 'low', 'high'), float)
    return pd.DataFrame(out).T.rename_axis('kind').astype(types)


def main():
    "Print the counts, and write them."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('runs', nargs='+', type=Path, help='run folders, their tensors in place')
    ap.add_argument('--data', default='', help='data set; default: that of each run')
    ap.add_argument('--sample', type=int, help='number of random test breasts of the first run '
                    'that are altered; default: all breasts of all runs')
    ap.add_argument('--out', type=Path, help='CSV file')
    o = ap.parse_args()
    samples = [o.sample if not i or o.sample is None else 0 for i in range(len(o.runs))]
    flags = [flag_breasts(run, o.data, sample) for run, sample in zip(o.runs, samples)]
    found = count(pd.concat(flags)).round(4)
    print(found.to_string())
    if o.out: found.to_csv(o.out)


if __name__ == '__main__': main()
