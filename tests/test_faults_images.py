"Rotated, negative, blank, tiny or huge images, special files, huge regions, stopped processes."
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cesm_nb import tensorize as tz
from cesm_nb.cohort.quality import inspect_image
from cesm_nb.cohort.quality import find_problems, write_report
from cesm_nb.cohort.quality import main as check
from cesm_nb.data import read_dataset
from cesm_nb.core.terms import REGIONS_NAME
from cesm_nb.imaging.decode import MAX_BYTES, image_problem, read_image
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.imaging.breast import SEGMENT_PX, segment_breast
from cesm_nb.roi import MAX_POINTS, enhance, fit_tiles, region_problem
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import read_tensor, tensorize
from conftest import PATIENCE, REAL, ROOT, needs_data

import mutate


@pytest.fixture(scope='module')
def whole(module_path):
    "A small phantom and its tensors under both protocols."
    data = make_phantom(module_path/'data', n_patients=6, size_px=72, progress=False)
    return data, {p: make(data, module_path/p, protocol=p) for p in ('paper', 'clinical')}


@pytest.fixture
def data(whole, tmp_path):
    "A copy to damage."
    return Path(shutil.copytree(whole[0], tmp_path/'data'))


def make(data, folder, **settings):
    "Tensors by name, and problems by breast."
    cfg = TensorConfig(data_root=str(data), run_dir=str(folder), image_size=16,
                       **({'n_jobs': 1} | settings))
    tensorize(cfg)
    problems = pd.read_csv(folder/'tensors'/'problems.csv')
    named = {f'P{o.patient_id}_{o.side}': o.problems for o in problems.itertuples()}
    return {f.stem: read_tensor(f) for f in (folder/'tensors').glob('*.pt')}, named


def a_view(data, modality='CM', regions=False):
    "Find the first image of a breast with both views; with a region if required."
    images = read_dataset(data).images.query('modality == @modality and path == path')
    both = images.groupby(['patient_id', 'side']).view.transform('nunique') == 2
    return images[both & (images.n_regions > 0 if regions else True)].iloc[0]


def kinds_of(data):
    "Findings of the check: kind -> names."
    return find_problems(data)[1].groupby('kind').image_name.agg(list)


# EXIF orientation -> Pillow transposition that makes such a file
STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


@pytest.mark.parametrize('turn', STORED)
def test_turned_images_give_the_same_tensor(whole, data, tmp_path, turn):
    "Regions are drawn on the upright image, so tensor and contact sheet are the same."
    row = a_view(data, regions=True)
    exif, image = Image.Exif(), Image.fromarray(read_image(row.path))
    exif[0x0112] = turn
    image.transpose(STORED[turn]).save(row.path, 'PNG', exif=exif)
    tensors, named = make(data, tmp_path, protocol='paper')
    before = whole[1]['paper'][0]
    assert not named and all((tensors[k]['x'] == v['x']).all() for k, v in before.items())
    assert row.image_name in kinds_of(data)['stored turned, used upright']
    shown = cv2.imread(row.path, cv2.IMREAD_GRAYSCALE) # as in chapter 00
    assert (shown == np.asarray(image)).all()
    changed = read_dataset(data).images.set_index('image_name').loc[row.image_name]
    assert changed.original_width_px == image.width and changed.original_height_px == image.height


def test_turned_jpeg_and_damaged_exif(data, tmp_path):
    row, exif = a_view(data), Image.Exif()
    upright = read_image(row.path)
    exif[0x0112] = 6
    ramp = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    ramp.save(row.path, 'JPEG', quality=100, exif=exif)
    assert abs(read_image(row.path).astype(int) - upright).max() <= 8
    spoilt = Path(row.path).read_bytes().replace(b'MM\0*', b'M?\0*').replace(b'II*\0', b'I?*\0')
    Path(row.path).write_bytes(spoilt)
    unturned = upright.shape[::-1] # unreadable EXIF is ignored, as in viewers
    assert read_image(row.path).shape == unturned


SPOILT = { # name -> (change of the image, kind reported, whether it counts as a view)
    'negative': (lambda im: 255 - im, 'negative', True),
    'grey background': (lambda im: np.maximum(im, 90), 'negative', True),
    'black': (lambda im: im*0, 'blank', False), 'white': (lambda im: im*0 + 255, 'blank', False),
    'noise': (lambda im: np.random.default_rng(0).integers(0, 9, im.shape, np.uint8), 'blank',
              False),
    '8 x 8': (lambda im: cv2.resize(im, (8, 8)), 'implausibly small', False),
    '1 x 1': (lambda im: im[:1, :1], 'implausibly small', False),
    '1 x 20000': (lambda im: cv2.resize(im, (1, 20_000)), 'implausibly small', False)}


@pytest.mark.parametrize('how', SPOILT)
def test_non_mammograms_are_reported_and_may_not_count_as_views(data, tmp_path, how):
    spoil, kind, counts = SPOILT[how]
    row = a_view(data)
    cv2.imwrite(f'{row.path}.png', spoil(read_image(row.path)))
    os.replace(f'{row.path}.png', row.path)
    assert kinds_of(data)[kind] == [row.image_name]
    assert inspect_image(row.path)['oddity'].startswith(kind) # also as a single image
    tensors, named = make(data, tmp_path, protocol='clinical')
    breast = f'P{row.patient_id}_{row.side}'
    assert list(named) == [breast] and kind in named[breast] and row.view in named[breast]
    views = tensors[f'P{row.patient_id}_{dict(L="Left", R="Right")[row.side]}']['real'].tolist()
    assert views == [counts or row.view != 'CC', counts or row.view != 'MLO']


@pytest.mark.parametrize('signal_, size', [(0., 64), (2., 300)])
def test_phantoms_are_not_flagged_as_negatives(tmp_path, signal_, size):
    root = make_phantom(tmp_path, n_patients=6, size_px=size, signal=signal_, progress=False)
    images = [read_image(f) for f in root.glob('*/*.jpg')]
    assert {image_problem(im) for im in images} == {''}
    assert {image_problem(255 - im).partition(':')[0] for im in images} == {'negative'}


@needs_data
def test_real_images_are_not_flagged_as_negatives():
    "Every fifth image; all 1,070 were tried once, with the same result."
    images = [read_image(f) for f in sorted(REAL.glob('* images of */*.jpg'))[::5]]
    assert len(images) > 200 and {image_problem(im) for im in images} == {''}
    assert {image_problem(255 - im).partition(':')[0] for im in images} == {'negative'}


def as_pipe(path): os.mkfifo(path)
def as_device(path): os.symlink('/dev/zero', path)
def as_folder(path): os.mkdir(path)
def as_sparse(path): Path(path).touch() or os.truncate(path, MAX_BYTES + 1)


@pytest.mark.parametrize('replace', [as_pipe, as_device, as_folder, as_sparse])
def test_special_files_are_reported_without_waiting(data, tmp_path, replace):
    row = a_view(data)
    Path(row.path).unlink()
    replace(row.path)
    kinds = kinds_of(data)
    listed = [*kinds.get('image cannot be used', []), *kinds.get('file absent (CM)', [])]
    assert row.image_name in listed
    tensors, named = make(data, tmp_path, protocol='clinical')
    real = tensors[f'P{row.patient_id}_{dict(L="Left", R="Right")[row.side]}']['real'].tolist()
    assert sum(real) == 1


def test_pipe_as_tensor_is_rejected_and_remade(data, tmp_path):
    before, _ = make(data, tmp_path)
    name = sorted(before)[0]
    path = tmp_path/'tensors'/f'{name}.pt'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match='is not a regular file'): read_tensor(path)
    again, _ = make(data, tmp_path)
    assert path.is_file() and (again[name]['x'] == before[name]['x']).all()


def test_large_images_are_checked_on_a_reduced_copy():
    "9000 x 9000 takes minutes otherwise; images up to the bound are checked at full size."
    half = cv2.ellipse(np.full((300, 200), 3, np.uint8), (0, 150), (150, 120), 0, 0, 360, 90, -1)
    large = cv2.resize(half, (9000, 9000), interpolation=cv2.INTER_NEAREST)
    image, odd = enhance(large, 'breast')
    assert image.shape == large.shape
    assert odd == [f'breast found on a reduced copy: 9000 x 9000 px are more than {SEGMENT_PX} '
                   'along a side']
    assert (segment_breast(large)[::30, ::45] == (half == 90)).mean() > .98
    assert enhance(half, 'breast')[1] == []


def test_regions_of_many_points_are_bounded(data, tmp_path):
    t = np.linspace(0, 2*np.pi, 2_000_001)[:-1]
    ring = dict(name='polygon', all_points_x=(30 + 9*np.cos(t)).tolist(),
                all_points_y=(40 + 9*np.sin(t)).tolist())
    assert region_problem(ring, (60, 80)) == 'thinned: polygon of 2,000,000 points thinned to 5,000'
    fine = dict(ring, all_points_x=ring['all_points_x'][::400],
                all_points_y=ring['all_points_y'][::400])
    assert len(fine['all_points_x']) == MAX_POINTS and region_problem(fine, (60, 80)) == ''
    line = dict(name='polygon', all_points_x=[30]*MAX_POINTS, # all edges in one column
                all_points_y=list(range(MAX_POINTS)))
    assert 'reaches beyond' in region_problem(line, (60, 80))
    assert region_problem(line, (60, 9999)) == ''
    row, via = a_view(data, regions=True), pd.read_csv(data/REGIONS_NAME, dtype=str)
    first = via.index[via['#filename'].str.startswith(row.image_name)][0]
    shorter = {k: v[::20] if k != 'name' else v for k, v in ring.items()}
    via.loc[first, 'region_shape_attributes'] = json.dumps(shorter)
    via.to_csv(data/REGIONS_NAME, index=False)
    problems = make(data, tmp_path)[1][f'P{row.patient_id}_{row.side}']
    assert 'polygon of 100,000 points thinned to 5,000' in problems
    assert row.image_name in kinds_of(data)['region thinned']


@pytest.mark.parametrize('clip, tiles', [
    (2., 0), (2., -3), (float('nan'), 8), (float('inf'), 8), (-1., 8)])
def test_clahe_rejects_settings_that_crash(clip, tiles):
    with pytest.raises(ValueError, match='clahe_(clip|tiles) is'): fit_tiles((90, 60), clip, tiles)


def test_clahe_settings_are_bounded():
    noise = np.random.default_rng(0).integers(0, 99, (90, 60), np.uint8)
    assert (enhance(noise, 'breast', clip=1e300)[0] == enhance(noise, 'breast', clip=256.)[0]).all()
    assert fit_tiles((90, 60), 2., 10**9) == fit_tiles((90, 60), 2., 90)


def test_workers_do_not_exceed_breasts(data, tmp_path, monkeypatch):
    started, parallel = [], tz.Parallel
    monkeypatch.setattr(tz, 'Parallel', lambda n: started.append(n) or parallel(1))
    for cores in (2, 64):
        monkeypatch.setattr(tz, 'effective_n_jobs', lambda n, cores=cores: cores)
        tensors, _ = make(data, tmp_path/str(cores), n_jobs=99)
    assert started == [2, len(tensors)]


def test_killed_worker_ends_with_a_sentence(data, tmp_path, monkeypatch):
    def fail(n): raise tz.TerminatedWorkerError('out of memory')
    monkeypatch.setattr(tz, 'Parallel', fail)
    with pytest.raises(OSError, match='run again with fewer n_jobs'): make(data, tmp_path)


def test_workers_end_on_sigterm(data, tmp_path):
    "Workers write their id and wait; none is left after the parent has ended."
    script = tmp_path/'run.py'
    script.write_text('''
import os, signal, sys, threading
from pathlib import Path
from cesm_nb import tensorize as tz
from cesm_nb.core.settings import TensorConfig
def wait(task, settings, folder, parent=os.getpid()):
    (Path(folder)/f"{os.getpid()}.worker").touch()
    if len(list(Path(folder).glob("*.worker"))) == 2: os.kill(parent, signal.SIGTERM)
    threading.Event().wait(600)
if __name__ == "__main__":
    tz.save_tensor = wait
    tz.tensorize(TensorConfig(data_root=sys.argv[1], run_dir=sys.argv[2], image_size=16, n_jobs=2))
''')
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, script, data, tmp_path], env=environment,
                          capture_output=True, timeout=PATIENCE)
    workers = [int(f.stem) for f in (tmp_path/'tensors').glob('*.worker')]
    assert done.returncode == 128 + signal.SIGTERM and len(workers) == 2
    def runs(worker):
        status = Path(f'/proc/{worker}/status')
        return os.path.exists(status) and 'zombie' not in status.read_text()
    assert [w for w in workers if runs(w)] == []


def test_page_is_written_atomically(data, tmp_path, monkeypatch):
    "An existing page is never partly overwritten, and leftovers of a killed process are removed."
    out = tmp_path/'out'
    page = write_report(data, out).read_bytes()
    assert (out/'.gitignore').read_text() == '*\n'
    assert sorted(f.name for f in out.iterdir()) == [
        '.gitignore', 'facts.csv', 'index.html', 'problems.csv']
    Path(a_view(data).path).unlink()
    write = Path.write_bytes
    def fill_disk(self, content):
        write(self, content[:99])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', fill_disk)
    with pytest.raises(OSError, match='cannot write .*No space left'): write_report(data, out)
    assert (out/'index.html').read_bytes() == page and not list(out.glob('.*.part'))


def test_check_writes_to_runs_by_default(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check(data)
    out = tmp_path/'runs'/'cesm_check'
    assert (out/'index.html').exists()
    assert 'runs/cesm_check/index.html' in capsys.readouterr().out
    assert (out/'.gitignore').read_text() == '*\n'


def spoil_regions(data, **change):
    via = pd.read_csv(data/REGIONS_NAME, dtype=str)
    via.assign(**{k: f(via[k]) for k, f in change.items()}).to_csv(data/REGIONS_NAME, index=False)


@pytest.mark.parametrize('change', [
    {'#filename': lambda c: 'other_' + c}, {'#filename': lambda c: c.str.replace('_CM_', '_DM_')},
    {'region_shape_attributes': lambda c: c.str.replace('name', 'form')},
    {'region_shape_attributes': lambda c: '{"name":"circle","cx":9000,"cy":9000,"r":3}'}])
def test_regions_without_images_are_rejected(data, tmp_path, change):
    "The paper's protocol requires regions."
    spoil_regions(data, **change)
    message = "no region that can be drawn on an image of modality 'CM'"
    with pytest.raises(ValueError, match=message): make(data, tmp_path)
    make(data, tmp_path/'clinical', protocol='clinical')


def test_dropped_breasts_are_counted_in_a_line(data, tmp_path, capsys):
    images = read_dataset(data).images.query('modality == "CM"')
    pairs = images[['patient_id', 'side']].drop_duplicates()
    first, second = pairs.iloc[:2].itertuples(index=False)
    for o in images.itertuples():
        if (o.patient_id, o.side) == first: Path(o.path).unlink()
        if (o.patient_id, o.side) == second: Path(o.path).write_bytes(b'')
    tensors, _ = make(data, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    n = len(pairs)
    assert len(tensors) == n - 2
    assert f'1 of {n} breasts dropped: none of their CM images is present' in lines[0]
    assert f'1 of {n-1} breasts dropped: none of their images' in lines[1]


def test_unused_images_in_a_shared_folder_are_reported(data):
    all_images = data/'images'
    all_images.mkdir()
    for f in data.glob('* of CDD-CESM/*.jpg'): f.rename(all_images/f.name)
    for d in data.glob('* of CDD-CESM'): d.rmdir()
    before = kinds_of(data)
    shutil.copy(a_view(data).path, all_images/'P99_L_CM_CC.jpg')
    assert not [k for k in before.index if 'no row uses' in k]
    assert kinds_of(data)['file that no row uses'] == ['P99_L_CM_CC.jpg']


def keep(data, where):
    "Keep only some rows of the sheet."
    book = data/'Radiology-manual-annotations.xlsx'
    sheet = pd.read_excel(book, dtype=str, keep_default_na=False)
    sheet[where(sheet)].to_excel(book, index=False, sheet_name='all')


OWN = { # name -> (rows of the sheet that are kept, settings)
    'CC only': (lambda s: s.View == 'CC', {}), 'MLO only': (lambda s: s.View == 'MLO', {}),
    'subtracted only': (lambda s: s.Type == 'CESM', {}),
    'low energy only': (lambda s: s.Type == 'DM', {'modality': 'DM'}),
    'left only': (lambda s: s.Side == 'L', {}),
    'two classes': (lambda s: s.iloc[:, -1] != 'Benign', {})}


@pytest.mark.parametrize('kind', OWN)
def test_other_labs_are_checked_and_tensorised(data, tmp_path, kind):
    where, settings = OWN[kind]
    keep(data, where)
    find_problems(data)
    for protocol in ('paper', 'clinical'):
        tensors, named = make(data, tmp_path/protocol, protocol=protocol, **settings)
        assert tensors and not named
    message = 'has no (region that can be drawn on an )?image of modality'
    with pytest.raises(ValueError, match=message):
        for f in read_dataset(data).images.query('modality == "CM"').path.dropna(): Path(f).unlink()
        make(data, tmp_path/'none', protocol='clinical')


@pytest.fixture(scope='module')
def mutations(): return mutate.mutate(12, seed=0)


def test_random_faults_are_reported_or_rejected(mutations):
    "`tools/dev/mutate.py` runs hundreds of them."
    assert set(mutations.outcome) <= {'same', 'named', 'refused'}
    assert mutations.fault.nunique() == len(mutate.MUTATIONS)


def test_mutation_tool_detects_bad_outcomes(tmp_path, monkeypatch):
    base = mutate.make_base(tmp_path/'phantom')
    whole = mutate.observe(base, tmp_path/'whole', 'clinical')
    name = mutate.images_of(base)[0]
    darker = base | {name: mutate.png(mutate.pixels(base[name]) // 2)}
    silent = mutate.observe(darker, tmp_path/'silent', 'clinical')
    assert mutate.name_outcome(silent, whole)[0] == 'WRONG' # no check detects it, so the tool must
    def fault(*_): raise RuntimeError('x')
    monkeypatch.setattr(mutate, 'check', fault)
    observed = mutate.observe(base, tmp_path/'fault', 'clinical')
    assert mutate.name_outcome(observed, whole)[0] == 'TRACEBACK'
    monkeypatch.setattr(mutate, 'CPU_S', .2)
    assert mutate.attempt(lambda: sum(i for i in range(10**9))) == 'HANG'
