"Faulty input as labs produce it: each fault is an error or is listed, and no breast is lost."
import json
import random
from collections import Counter
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cesm_nb.cohort.quality import find_problems
from cesm_nb.data import read_dataset
from cesm_nb.core.terms import FOLDERS, REGIONS_NAME, SHEET_COLUMNS, SHEET_NAME, SIZES_NAME
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.cli import cesm_tensorize as main
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import read_tensor, tensorize

CSV_NAME = SHEET_NAME.replace('.xlsx', '.csv')


@pytest.fixture(scope='module')
def phantom(module_path):
    "A small phantom as bytes: name -> content, its sheet as CSV (quicker to read than .xlsx)."
    root = make_phantom(module_path/'phantom'/'data', n_patients=6, size_px=72, progress=False)
    files = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob('*') if f.is_file()}
    book = BytesIO(files.pop(SHEET_NAME))
    sheet = pd.read_excel(book, sheet_name='all', dtype=str, keep_default_na=False)
    files[CSV_NAME] = sheet.to_csv(index=False).encode()
    return files


def lay_out(files, root):
    "Write a data set."
    for name, content in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)
    return root


def run(files, root, **settings):
    "Tensorise a data set; return the manifest and listed problems, or None and the error message."
    lay_out(files, root/'data')
    cfg = TensorConfig(data_root=str(root/'data'), run_dir=str(root), image_size=16, n_jobs=1,
                       **settings)
    try: manifest = tensorize(cfg)
    except (ValueError, OSError) as e: # anything else is a traceback: it fails the test
        assert str(e) and '\n' not in str(e)
        return None, str(e)
    return manifest, pd.read_csv(root/'tensors'/'problems.csv', keep_default_na=False)


def views(manifest, key=('patient_id', 'side')):
    "List the views of each breast."
    return {tuple(o[k] for k in key): (o.has_cc, o.has_mlo) for _, o in manifest.iterrows()}


def images_of(files, modality='CM'):
    return sorted(f for f in files if f.startswith(FOLDERS[modality]))


def as_jpeg(mode):
    buffer = BytesIO()
    Image.linear_gradient('L').convert(mode).save(buffer, 'JPEG')
    return buffer.getvalue()


def as_png(image): return cv2.imencode('.png', image)[1].tobytes()


def colourful(kind):
    ramp = np.tile(np.arange(0, 240, 3, np.uint8), (80, 1))
    return cv2.imencode(kind, cv2.merge([ramp, ramp.T.copy(), ramp]))[1].tobytes()


BAD_IMAGES = { # kind -> (how an image is damaged, part of the message)
    'empty': (lambda b: b'', 'it is empty'),
    'truncated': (lambda b: b[:len(b) // 2], 'Premature end'),
    'text': (lambda b: b'<html>', 'it is a web page'),
    '16-bit': (lambda b: as_png(np.full((80, 80), 999, np.uint16)), '16 bits a pixel'),
    'CMYK': (lambda b: as_jpeg('CMYK'), 'CMYK'),
    'colour JPEG': (lambda b: colourful('.jpg'), 'in colour'),
    'colour PNG': (lambda b: colourful('.png'), 'in colour'),
    'truncated PNG': (lambda b: as_png(np.eye(80, dtype=np.uint8))[:-20], ''),
    'huge header': (lambda b: b.replace(b[b.index(b'\xff\xc0') + 5:][:4], b'\xfd\xe8\xfd\xe8'),
                    'header claims 65000 x 65000')}


@pytest.mark.parametrize('kind', BAD_IMAGES)
def test_bad_image_is_reported_or_raises(phantom, tmp_path, kind):
    damage, message = BAD_IMAGES[kind]
    whole, _ = run(phantom, tmp_path/'whole')
    name = images_of(phantom)[0]
    damaged = phantom | {name: damage(phantom[name])}
    manifest, problems = run(damaged, tmp_path/'a')
    assert len(problems) == 1
    assert Path(name).name in problems.problems[0] and message in problems.problems[0]
    count_views = lambda manifest: sum(map(sum, views(manifest).values()))
    assert count_views(manifest) == count_views(whole) - 1 # one view fewer, the rest unchanged
    _, error = run(damaged, tmp_path/'b', strict=True)
    assert error.startswith('strict: 1 of')
    assert Path(name).name in error and 'run without strict' in error
    _, found, _ = find_problems(tmp_path/'a'/'data')
    unusable = found[found.kind == 'image cannot be used'].image_name
    assert Path(name).stem.strip() in unusable.tolist()


def test_grey_in_three_channels_is_converted(phantom, tmp_path):
    name = images_of(phantom)[0]
    grey = cv2.imdecode(np.frombuffer(phantom[name], np.uint8), cv2.IMREAD_GRAYSCALE)
    triple = cv2.imencode('.png', cv2.merge([grey]*3))[1].tobytes()
    run(phantom, tmp_path/'a')
    manifest, problems = run(phantom | {name: triple}, tmp_path/'b') # PNG inside, .jpg outside
    assert problems.empty
    for f in manifest.file:
        a, b = (read_tensor(tmp_path/k/'tensors'/f)['x'] for k in ('a', 'b'))
        assert (a == b).all()


BAD_REGIONS = {
    '{"name":"polygon","all_points_x":[1,2': 'broken JSON', '[]': 'broken JSON',
    'null': 'broken JSON', '['*9999: 'broken JSON',
    '{"name":"polygon","all_points_x":[1,2],"all_points_y":[1,2]}': 'fewer than 3',
    '{"name":"star"}': "unknown shape 'star'", '{"name":["a"]}': 'unknown shape',
    '{"name":"circle","cx":9999,"cy":9,"r":3}': 'lies outside the image',
    '{"name":"circle","cx":1e99,"cy":9,"r":3}': 'not pixel positions',
    '{"name":"circle","cx":"=A1","cy":9,"r":3}': 'garbles',
    '{"name":"circle","cx":NaN,"cy":9,"r":3}': 'not pixel positions',
    '{"name":"polygon","all_points_x":[1,2,3],"all_points_y":[[1],[2,3],4]}': 'garbles',
    '{"name":"ellipse","cx":9,"cy":9}': "garbles 'rx'"}


@pytest.mark.parametrize('text', BAD_REGIONS, ids=lambda t: t[:40])
def test_bad_region_is_skipped_and_reported(phantom, tmp_path, text):
    via = pd.read_csv(BytesIO(phantom[REGIONS_NAME]), dtype=str)
    row = via['#filename'].str.contains('_CM_').idxmax()
    via.loc[row, 'region_shape_attributes'] = text
    files = phantom | {REGIONS_NAME: via.to_csv(index=False).encode()}
    _, problems = run(files, tmp_path)
    assert problems.problems.str.contains(BAD_REGIONS[text], regex=False).any()
    _, found, _ = find_problems(tmp_path/'data')
    found = found[found.kind == 'region skipped']
    assert BAD_REGIONS[text] in found.detail.iloc[0]
    assert found.image_name.iloc[0] == via['#filename'][row][:-4].strip()


def drop(files, part): return {k: v for k, v in files.items() if not k.startswith(part)}


def with_cell(files, row, column, value):
    "Return the data set with one cell of the sheet changed; without the column if `row` is None."
    sheet = pd.read_csv(BytesIO(files[CSV_NAME]), dtype=str, keep_default_na=False)
    if column not in sheet or row is None: sheet = sheet.drop(columns=column)
    else: sheet.loc[row, column] = value
    return files | {CSV_NAME: sheet.to_csv(index=False).encode()}


def without_pixels(files): return {k: b'' if k in images_of(files) else v for k, v in files.items()}


INVALID = { # fault -> (the changed data set, part of the message)
    'no sheet': (lambda f: drop(f, CSV_NAME), 'lacks the annotation sheet'),
    'no images': (lambda f: drop(drop(f, FOLDERS['CM']), FOLDERS['DM']),
                  'lacks both image folders'),
    'no regions': (lambda f: drop(f, REGIONS_NAME), 'has no region file'),
    'no such modality': (lambda f: drop(f, FOLDERS['CM']), "no image of modality 'CM'"),
    'column': (lambda f: with_cell(f, None, 'Age', ''), "no column ['Age']"),
    'label': (lambda f: with_cell(f, 3, SHEET_COLUMNS[-1], 'Cancer'), "row 5 ('Cancer')"),
    'side': (lambda f: with_cell(f, 0, 'Side', 'B'), "side is not L or R: row 2 ('B')"),
    'view': (lambda f: with_cell(f, 0, 'View', 'LM'), "row 2 ('LM')"),
    'density': (lambda f: with_cell(f, 0, 'Breast density (ACR)', 'E'), "row 2 ('E')"),
    'age': (lambda f: with_cell(f, 0, 'Age', '461'), "row 2 ('461')"),
    'path in a name': (lambda f: with_cell(f, 0, 'Image_name', '../P1_L_CM_CC'), "'../P1_L_CM_CC'"),
    'separator': (lambda f: with_cell(f, 0, 'Image_name', 'P1_L_CM_CC/x'), 'published form'),
    'sheet is text': (lambda f: f | {CSV_NAME: b'\x00\xff\xfe'}, CSV_NAME),
    'truncated workbook': (lambda f: drop(f, CSV_NAME) | {SHEET_NAME: b'PK\x03\x04'},
                           'is not a readable workbook'),
    'empty sheet': (lambda f: f | {CSV_NAME: f[CSV_NAME].splitlines()[0]}, 'has no rows'),
    'sizes': (lambda f: f | {SIZES_NAME: b'a,b\n1,2\n'}, "no column ['filename'"),
    'region file': (lambda f: f | {REGIONS_NAME: b'a,b\n1,2\n'}, "no column ['filename'"),
    'all images broken': (without_pixels, 'has an image that can be read')}


@pytest.mark.parametrize('kind', INVALID)
def test_invalid_data_set_is_rejected_in_one_sentence(phantom, tmp_path, kind):
    change, message = INVALID[kind]
    manifest, error = run(change(phantom), tmp_path)
    assert manifest is None and message in error
    assert not list(tmp_path.rglob('*.pt'))


def test_command_fails_without_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['cesm_tensorize', '--data-root', str(tmp_path)])
    with pytest.raises(SystemExit, match='cesm_tensorize: .* lacks the annotation sheet'): main()


def test_absent_and_surplus_files_are_counted(phantom, tmp_path):
    lost, *_, last = images_of(phantom)
    surplus = {f"{FOLDERS['CM']}/P999_L_CM_CC.jpg": phantom[last]}
    lay_out(drop(phantom, lost) | surplus, tmp_path)
    facts, problems, _ = find_problems(tmp_path)
    kinds = problems.groupby('kind').image_name.agg(list)
    assert Path(lost).stem.strip() in kinds['file absent (CM)']
    assert kinds['file that no row uses (CM)'] == ['P999_L_CM_CC.jpg']


def test_region_without_image_size_is_reported(phantom, tmp_path):
    images = read_dataset(lay_out(phantom, tmp_path/'lay')).images
    columns = ['image_name', 'original_width_px', 'original_height_px']
    sizes = images.dropna(subset='path')[columns]
    sizes = sizes.set_axis(['filename', 'width', 'height'], axis=1)
    drawn = images[(images.n_regions > 0) & (images.modality == 'CM') & images.path.notna()]
    name = drawn.image_name.iloc[0]
    widths = sizes.width.astype(str).where(sizes.filename != name, '=B7')
    sizes = sizes.assign(filename=sizes.filename + '.jpg', width=widths)
    _, problems = run(phantom | {SIZES_NAME: sizes.to_csv(index=False).encode()}, tmp_path)
    assert len(problems) == 1 and 'no valid size' in problems.problems[0]
    assert name in problems.problems[0].replace(' .jpg', '.jpg')


def corrupt(files, rng):
    "Make one random fault; return its kind, the name of the place it changes, and the files."
    kind = rng.choice(['truncated', 'zeroed', 'bit flipped', 'sheet cell', 'sheet cell', 'region',
                       'region file bytes'])
    if kind in ('truncated', 'zeroed', 'bit flipped'):
        name = rng.choice(images_of(files))
        b, at = bytearray(files[name]), rng.randrange(len(files[name]))
        if kind == 'truncated': b = b[:at]
        elif kind == 'zeroed': b[at:at+200] = bytes(len(b[at:at+200]))
        else: b[at] ^= 1 << rng.randrange(8)
        return kind, name, files | {name: bytes(b)}
    if kind == 'sheet cell':
        column = rng.choice(SHEET_COLUMNS)
        value = rng.choice(['', 'text', '1e308', '9'*400, '=1+1', '=HYPERLINK("x")', '-1', '\x00'])
        row = rng.randrange(files[CSV_NAME].count(b'\n') - 1)
        return kind, f'row {row+2}', with_cell(files, row, column, value)
    if kind == 'region':
        via = pd.read_csv(BytesIO(files[REGIONS_NAME]), dtype=str)
        row = rng.choice(via.index[via['#filename'].str.contains('_CM_')].tolist())
        text = via.loc[row, 'region_shape_attributes']
        part = text[:rng.randrange(1, len(text))]
        huge = json.dumps({k: 1e300 for k in json.loads(text)})
        value = rng.choice([part, huge, '', '=1+1', text.replace(':', '')])
        via.loc[row, 'region_shape_attributes'] = value
        name = via['#filename'][row][:-4].strip()
        return kind, name, files | {REGIONS_NAME: via.to_csv(index=False).encode()}
    b = bytearray(files[REGIONS_NAME])
    b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    return kind, REGIONS_NAME, files | {REGIONS_NAME: bytes(b)}


def test_300_random_corruptions(phantom, tmp_path):
    rng, outcomes = random.Random(0), Counter()
    whole, problems = run(phantom, tmp_path/'whole')
    assert problems.empty
    pixels = {f: read_tensor(tmp_path/'whole'/'tensors'/f)['x'] for f in whole.file}
    for i in range(300):
        kind, place, files = corrupt(phantom, rng)
        manifest, result = run(files, tmp_path/str(i))
        if manifest is None:
            named = place in result or Path(place).name in result
            assert named or kind == 'region file bytes', (kind, place, result)
            outcomes[kind, 'rejected'] += 1
            continue
        listed = {(o.patient_id, o.side): o.problems for o in result.itertuples()}
        for breast, had in views(whole).items(): # every missing view is listed
            has = views(manifest).get(breast, (False, False))
            for view, a, b in zip(('CC', 'MLO'), had, has):
                assert b or not a or f'{view}: ' in listed.get(breast, ''), (kind, place, breast)
        new = {f: read_tensor(tmp_path/str(i)/'tensors'/f)['x'] for f in manifest.file}
        same = all(f in pixels and (x == pixels[f]).all() for f, x in new.items())
        unchanged = same and len(manifest) == len(whole)
        outcome = 'listed' if listed else 'no effect' if unchanged else 'other values'
        outcomes[kind, outcome] += 1
        if kind in ('truncated', 'zeroed') and not listed:
            assert same, (kind, place) # a damaged image is never used as a good one
    print(pd.Series(outcomes).unstack(fill_value=0).to_string())
    assert sum(outcomes.values()) == 300
    for key in (('truncated', 'listed'), ('sheet cell', 'rejected'), ('region', 'listed')):
        assert outcomes[key] > 0, key
