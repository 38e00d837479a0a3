"Input as found in labs is read correctly or rejected: sheets, region files, layouts, names."
import io
import json
import sys
import zipfile

import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest

from cesm_nb.data import breasts, check_sheet, image_key, read_dataset, read_sheet
from cesm_nb.core.terms import FOLDERS, REGIONS_NAME, SHEET_COLUMNS, SHEET_NAME
from cesm_nb.cohort.download import inspect_download
from cesm_nb.io.tables import read_table
from cesm_nb.roi import scaled_outlines

CSV_NAME = SHEET_NAME.replace('.xlsx', '.csv')
LABEL, DENSITY = SHEET_COLUMNS[-1], 'Breast density (ACR)'
TRIANGLE = dict(name='polygon', all_points_x=[1, 9, 5], all_points_y=[1, 2, 9])


def make_sheet(n=3):
    "One row per image: both modalities and views of `n` left breasts; the first is malignant."
    rows = [(f'P{i}_L_{m}_{v}', str(i), 'L', 'CESM' if m == 'CM' else m, '41',
             'B' if m == 'DM' else '_', '5', 'mass', v, 'mass', '1',
             'Malignant' if i == 1 else 'Normal')
            for i in range(1, n + 1) for m in ('DM', 'CM') for v in ('CC', 'MLO')]
    return pd.DataFrame(rows, columns=list(SHEET_COLUMNS))


def make_regions(names=('P1_L_DM_CC.jpg', 'P1_L_CM_CC.jpg'), cell=None):
    "A VIA 2 export: one triangle per image."
    cell = json.dumps(TRIANGLE) if cell is None else cell
    return pd.DataFrame({'#filename': names, 'region_count': 1, 'region_shape_attributes': cell,
                         'region_attributes': '{}'})


def region_file(*args, **more): return {REGIONS_NAME: to_bytes(make_regions(*args, **more))}


def to_bytes(frame, **o): return frame.to_csv(index=False, **o).encode()


@pytest.fixture(scope='session')
def jpeg():
    return cv2.imencode('.jpg', np.tile(np.arange(0, 240, 4, np.uint8), (40, 1)))[1].tobytes()


def lay_out(root, jpeg, sheet=None, regions=None, where=None):
    "A data set of 12 images; `where`: image name -> path; `sheet`, `regions`: file name -> bytes."
    where = where or (lambda n: f"{FOLDERS[n.split('_')[2]]}/{n}.jpg")
    files = {where(n): jpeg for n in make_sheet().Image_name}
    files |= sheet or {CSV_NAME: to_bytes(make_sheet())}
    files |= region_file() if regions is None else regions
    for name, content in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)
    return root


def refusal(*args):
    "Return the error of a data set; it names the file or folder."
    with pytest.raises((ValueError, FileNotFoundError)) as e: read_dataset(*args)
    assert '\n' not in str(e.value) and len(str(e.value)) < 1000
    return str(e.value)


def as_csv(**o): return make_sheet().to_csv(index=False, **o)


def german(frame):
    own = frame.assign(Age=frame.Age + ',0', Findings='dichte Läsion', Side='Left')
    return own.to_csv(index=False, sep=';')


TEXTS = {
    'semicolon': as_csv(sep=';').encode(), 'tab': as_csv(sep='\t').encode(),
    'UTF-16': as_csv(sep='\t').encode('utf-16'),
    'UTF-16 without a mark': as_csv().encode('utf-16-le'), 'mark': as_csv().encode('utf-8-sig'),
    'cp1252': german(make_sheet()).encode('cp1252'),
    'sep': b'sep=;\r\n' + as_csv(sep=';', lineterminator='\r\n').encode(),
    'old Mac': as_csv(lineterminator='\r').encode(), 'index': make_sheet().to_csv().encode(),
    'quotes': as_csv(quoting=1).encode(),
    'comma at the end': as_csv().replace('\n', ',\n').encode(),
    'blank tail': as_csv().encode() + b',,,,,,,,,,,\n\n',
    'blank rows': as_csv().replace('\n', '\n\n').encode(),
    'note below': as_csv().encode() + b'\n* two readers\n',
    'title': b'Our cohort\n\n' + as_csv().encode(),
    'other case': as_csv().replace('Image_name', 'IMAGE NAME').replace(
        'Pathology Classification/ Follow up', 'pathology').encode()}


@pytest.mark.parametrize('kind', TEXTS)
def test_sheets_as_text(tmp_path, kind):
    (tmp_path/CSV_NAME).write_bytes(TEXTS[kind])
    plain, found = check_sheet(make_sheet()), check_sheet(read_sheet(tmp_path/CSV_NAME))
    assert found.drop(columns='findings').equals(plain.drop(columns='findings'))


DENSITIES = {'1': 'A', '2.0': 'B', '3': 'C', '4': 'D', 'b': 'B', '-': '_', 'NA': '_', 'ACR C': 'C'}
CELLS = { # spelling -> (column, as written, as read)
    'id': ('Patient_ID', '12.0', '12'), 'zeros': ('Patient_ID', '0012', '12'),
    'letter': ('Patient_ID', 'P12', '12'), 'side': ('Side', 'Left', 'L'),
    'side case': ('Side', 'l', 'L'), 'type': ('Type', 'cesm', 'CESM'), 'view': ('View', 'cc', 'CC'),
    'age': ('Age', '41,0', '41'), 'name': ('Image_name', 'p12_l_cm_cc.JPG', 'P12_L_CM_CC'),
    'label': (LABEL, 'MALIGNANT', 'Malignant'),
    **{f'density {d!r}': (DENSITY, d, m) for d, m in DENSITIES.items()}}


@pytest.mark.parametrize('kind', CELLS)
def test_spellings_of_values(kind):
    column, written, expected = CELLS[kind]
    values = 'P12_L_CM_CC', '12', 'L', 'CESM', '41', 'B', '5', '', 'CC', '', '1', 'Malignant'
    row = dict(zip(SHEET_COLUMNS, values))
    checked = lambda value: check_sheet(pd.DataFrame([row | {column: value}]))
    assert checked(written).equals(checked(expected))


def book_of(rows, name='all', before=None):
    book = openpyxl.Workbook()
    book.active.title = name
    for row in rows: book.active.append(row)
    if before: before(book)
    book.save(stored := io.BytesIO())
    return stored.getvalue()


def cells(frame): return [list(frame.columns), *frame.to_numpy().tolist()]


def merge(book):
    for i in range(3, 6): book.active.cell(i, 5).value = None
    book.active.merge_cells('E2:E5')


def notes_first(book):
    book.active.title = 'All'
    book.create_sheet('notes', 0).append(['see the other sheet'])


BOOKS = {
    'title': book_of([['Our cohort'], [], *cells(make_sheet())]),
    'blank row': book_of([*cells(make_sheet())[:4], [], *cells(make_sheet())[4:]]),
    'note below': book_of([*cells(make_sheet()), [], ['* two readers']]),
    'merged ages': book_of(cells(make_sheet()), before=merge),
    'notes first': book_of(cells(make_sheet()), before=notes_first),
    'other sheet name': book_of(cells(make_sheet()), 'Tabelle1'),
    'line break in a header': book_of([[c.replace(' (', '\n(') for c in SHEET_COLUMNS],
                                       *cells(make_sheet())[1:]]),
    'stray cell': book_of(cells(make_sheet()), before=lambda b: b.active.cell(1048576, 16384, 'x')),
    'numbers': book_of([[float(v) if v.isdigit() else v for v in r] for r in cells(make_sheet())])}


@pytest.mark.parametrize('kind', BOOKS)
def test_workbooks(tmp_path, kind):
    (tmp_path/SHEET_NAME).write_bytes(BOOKS[kind])
    assert check_sheet(read_sheet(tmp_path/SHEET_NAME)).equals(check_sheet(make_sheet()))


def rewrite(content, change):
    "A workbook with changed parts: name and bytes -> bytes."
    with zipfile.ZipFile(io.BytesIO(content)) as z: parts = {n: z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(stored := io.BytesIO(), 'w') as z:
        for n, b in parts.items(): z.writestr(n, change(n, b))
    return stored.getvalue()


def strict(name, part): # as Excel writes "Strict Open XML Spreadsheet"
    for a, b in ((b'spreadsheetml/2006/main', b'spreadsheetml/main'),
                 (b'officeDocument/2006/relationships', b'officeDocument/relationships')):
        old, new = b'http://schemas.openxmlformats.org/' + a, b'http://purl.oclc.org/ooxml/' + b
        part = part.replace(old, new)
    return part


def tear(name, part):
    return part[:300] + b'<' + part[300:] if name.startswith('xl/worksheets/sheet') else part


def test_unreadable_workbooks_are_rejected(tmp_path):
    "Strict Open XML, damaged XML, formulas without stored value: an error, and no row is dropped."
    book, path = book_of(cells(make_sheet())), tmp_path/SHEET_NAME
    formulas = make_sheet().assign(**{DENSITY: '=IF(1=1,"B","C")'})
    elsewhere = make_sheet().assign(Findings='=1+1')
    for content, message in [
            (rewrite(book, strict), 'Strict Open XML.*save it as Excel workbook'),
            (rewrite(book, tear), 'is not a readable workbook .*save it as Excel workbook'),
            (book_of(cells(formulas)), 'row 2 has a formula without a stored value: '
             'open it in Excel or LibreOffice and save it')]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as e: read_sheet(path)
        assert SHEET_NAME in str(e.value)
    path.write_bytes(book_of([[*r, '=A2'] for r in cells(make_sheet())])) # in an unused column
    assert check_sheet(read_sheet(path)).equals(check_sheet(make_sheet()))
    path.write_bytes(book_of(cells(elsewhere)))
    with pytest.raises(ValueError, match='formula without a stored value'): read_sheet(path)


def test_download_in_two_parts_is_rejected(tmp_path, jpeg):
    "Two folders of one name with half of the images each are rejected, identical copies accepted."
    lay_out(tmp_path/'d-001', jpeg)
    other = tmp_path/'d-002'/FOLDERS['CM']
    other.mkdir(parents=True)
    for f in (tmp_path/'d-001'/FOLDERS['CM']).iterdir(): (other/f.name).write_bytes(jpeg)
    assert len(read_dataset(tmp_path).images) == 12
    for f in list(other.glob('P2*')): (tmp_path/'d-001'/FOLDERS['CM']/f.name).unlink()
    message = refusal(tmp_path)
    assert 'was found more than once' in message and 'd-002' in message
    assert 'holds 2 images that' in message and 'move all of them into one' in message
    wrong = inspect_download(tmp_path)[1]
    assert any('holds 2 images that' in w for w in wrong)
    assert read_dataset(tmp_path/'d-001').images.path.notna().sum() == 10 # only the named part


def test_row_numbers_match_the_spreadsheet(tmp_path):
    "Blank lines count, a multi-line cell is one row, title and `sep=` lines as in the program."
    bad = make_sheet().assign(Age=['41']*5 + ['461'] + ['41']*6) # the sixth image, row 7
    text = bad.assign(Findings='first\nsecond').to_csv(index=False, lineterminator='\n')
    top, rest = text[:text.index('P2_L_DM_CC')], text[text.index('P2_L_DM_CC'):]
    for content, row in ((text, 7), (top + '\n\n' + rest, 9), ('Our cohort\n\n' + text, 9),
                         ('sep=,\n' + text, 7)):
        (tmp_path/CSV_NAME).write_text(content)
        message = rf'{CSV_NAME}: age is not between 10 and 120 years: row {row} '
        with pytest.raises(ValueError, match=message): check_sheet(read_sheet(tmp_path/CSV_NAME))
    book = book_of([['Our cohort'], *cells(bad)[:3], [], *cells(bad)[3:]])
    (tmp_path/SHEET_NAME).write_bytes(book)
    with pytest.raises(ValueError, match="row 9 \\('461'\\)"):
        check_sheet(read_sheet(tmp_path/SHEET_NAME))


def add_sheet(book):
    other = book.create_sheet('b')
    for row in cells(make_sheet()): other.append(row)


REJECTED = { # kind -> (file name, content, words of the error)
    '.ods': ('Radiology-manual-annotations.ods',
             b'PK\x03\x04....mimetypeapplication/vnd.oasis.opendocument.spreadsheet',
             'save it as .xlsx or .csv'),
    '.xls': ('Radiology-manual-annotations.xls', b'\xd0\xcf\x11\xe0', 'save it as .xlsx or .csv'),
    'web page': (CSV_NAME, b'<!DOCTYPE html>', 'is a web page'),
    'date': (CSV_NAME, make_sheet().assign(Age='1960-02-03').to_csv().encode(), 'age is a date'),
    'comma': (CSV_NAME, as_csv().replace('mass,CC', 'mass, round,CC').encode(),
              'row 2 has 13 cells'),
    'twice': (CSV_NAME, make_sheet().assign(age='3').to_csv().encode(),
              "column ['Age'] more than once"),
    'open quote': (CSV_NAME, as_csv().replace('mass', '"mass', 1).encode(), 'quotes closed'),
    'same image': (CSV_NAME, as_csv().replace('P1_L_DM_MLO,', 'p1_l_dm_cc.png,').encode(),
                   'named twice'),
    'other name': ('cohort.docx', b'', "found ['"),
    'two sheets': (SHEET_NAME, book_of(cells(make_sheet()), 'a', add_sheet),
                   "name the right one 'all'")}


@pytest.mark.parametrize('kind', REJECTED)
def test_invalid_sheets_are_rejected(tmp_path, jpeg, kind):
    name, content, message = REJECTED[kind]
    assert message in refusal(lay_out(tmp_path, jpeg, {name: content}))


def test_cell_with_a_bare_separator_is_rejected(tmp_path):
    "46,5 without quotes would move the rest of its row by one cell."
    (path := tmp_path/'list.csv').write_text('case,age,window\na,46,5,\nb,60,\n')
    with pytest.raises(ValueError, match='row 2 has 4 cells, the header 3: put cells'):
        read_table(path, ('case', 'age', 'window'))
    path.write_text('case,age,window\na,46,2,\nb,60,1,\n') # a comma too many in every row
    assert read_table(path, ('case', 'age', 'window')).window.tolist() == ['2', '1']


def test_ambiguous_files_are_rejected(tmp_path, jpeg):
    "Two differing sheets or region files are rejected; equal copies or a named file are accepted."
    lay_out(tmp_path, jpeg)
    (tmp_path/CSV_NAME.replace('-', '_')).write_bytes((tmp_path/CSV_NAME).read_bytes())
    assert len(read_dataset(tmp_path).images) == 12
    (tmp_path/SHEET_NAME).write_bytes(book_of(cells(make_sheet())))
    message = refusal(tmp_path)
    assert 'the annotation sheet was found more than once' in message
    assert SHEET_NAME in message and CSV_NAME in message
    assert len(read_dataset(tmp_path/SHEET_NAME).images) == 12
    (tmp_path/SHEET_NAME).unlink()
    other = tmp_path/REGIONS_NAME.replace('_', '-')
    other.write_text('filename,region_shape_attributes\n')
    assert 'the region file was found more than once' in refusal(tmp_path)
    assert read_dataset(tmp_path, other).regions.empty


LAYOUTS = {
    'package': 'PKG - CDD-CESM/CDD-CESM/{f}/{n}.jpg',
    'no blanks': 'PKG-CDD-CESM/CDD-CESM/{f}/{n}.jpg',
    'underscores': 'PKG_-_CDD-CESM/CDD-CESM/{f}/{n}.jpg',
    'level': 'CDD-CESM/PKG - CDD-CESM/CDD-CESM/{f}/{n}.jpg',
    'other level': 'download/v1/{f}/{n}.jpg', 'images': 'images/{f}/{n}.jpg',
    'one folder': 'imgs/{n}.jpg', 'beside the sheet': '{n}.jpg',
    'a folder per patient': 'imgs/{p}/{n}.jpg', 'case': '{l}/{s}.JPG',
    'other suffix': '{f}/{n}.tif', 'subfolders': '{f}/{p}/{n}.jpg', 'short names': '{m}/{n}.png',
    'modalities mixed up': 'Low energy images of CDD-CESM/{n}.jpg'}


@pytest.mark.parametrize('kind', LAYOUTS)
def test_layouts(tmp_path, jpeg, kind):
    "All images are found, each at its own path."
    def where(n):
        p, _, m, _ = n.split('_')
        return LAYOUTS[kind].format(n=n, s=n.lower(), p=p, m=m, f=FOLDERS[m],
                                    l=FOLDERS[m].upper().replace(' ', '-'))
    images = read_dataset(lay_out(tmp_path, jpeg, where=where)).images
    assert images.path.map(image_key).tolist() == images.image_name.map(image_key).tolist()
    assert images.n_regions.sum() == 2 and set(breasts(images).n_views) == {2}


def test_data_set_in_a_subfolder(tmp_path, jpeg):
    lay_out(tmp_path/'download'/'v1', jpeg)
    found = read_dataset(tmp_path)
    assert found.images.path.notna().all() and len(found.regions) == 2
    (tmp_path/'download'/'v2').mkdir()
    (tmp_path/'download'/'v2'/SHEET_NAME).write_bytes(book_of(cells(make_sheet())))
    assert 'more than once' in refusal(tmp_path)


def test_duplicate_image_is_rejected(tmp_path, jpeg):
    lay_out(tmp_path, jpeg)
    copy = tmp_path/FOLDERS['CM']/'p1_l_cm_cc.jpg'
    copy.write_bytes(jpeg)
    assert len(read_dataset(tmp_path).images) == 12 # equal
    copy.write_bytes(jpeg + b' ')
    assert 'image P1_L_CM_CC was found more than once' in refusal(tmp_path)


NAMES = ['images/{}.jpg', 'https://lab.example/cesm/{}.jpg', 'C:\\cesm\\{}.jpg', '{}.tif',
         '{}_224.png', '{}', ' {} .jpg', 'file%20s/{}.PNG']


@pytest.mark.parametrize('form', NAMES)
def test_regions_by_the_name_of_their_image(tmp_path, jpeg, form):
    names = [form.format(n) for n in ('P1_L_DM_CC', 'P1_L_CM_CC')]
    for some in (names, [n.replace('P1_L', 'p1_l').replace('M_CC', 'm_cc') for n in names]):
        found = read_dataset(lay_out(tmp_path, jpeg, regions=region_file(some)))
        assert found.unmatched.empty and found.images.n_regions.sum() == 2
        assert found.regions.image_name.isin(found.images.image_name).all()
        found.need_regions('CM')


POOR = { # kind -> (region file, words of the error)
    'other names': (make_regions(['scan1.jpg', 'scan2.jpg']),
                    "2 are on images that the sheet does not name (such as 'scan1')"),
    'other modality': (make_regions(['P1_L_DM_CC.jpg', 'P2_L_DM_CC.jpg']), '2 are on other images'),
    'undrawable': (make_regions(cell="{'name': 'rect'}"), '1 cannot be drawn'),
    'outside': (make_regions(cell='{"name":"circle","cx":-99,"cy":5,"r":2}'), '1 cannot be drawn'),
    'empty cells': (make_regions(cell='{ }'), 'of 0 regions')}


@pytest.mark.parametrize('kind', POOR)
def test_missing_required_regions(tmp_path, jpeg, kind):
    regions, words = POOR[kind]
    found = read_dataset(lay_out(tmp_path, jpeg, regions={REGIONS_NAME: to_bytes(regions)}))
    with pytest.raises(ValueError) as e: found.need_regions('CM')
    message = str(e.value)
    assert words in message and REGIONS_NAME in message and "modality 'CM'" in message
    assert len(found.unmatched) == (2 if kind == 'other names' else 0)
    assert found.images.n_regions.sum() == (2 if kind == 'other modality' else 0)


def via_json(names=('P1_L_DM_CC.jpg', 'P1_L_CM_CC.jpg')):
    regions = [dict(shape_attributes=TRIANGLE)]
    return json.dumps({f'{n}9': dict(filename=n, size=9, regions=regions) for n in names}).encode()


VIA3_HEAD = (b'# Exported using VGG Image Annotator\n# CSV_HEADER = metadata_id,file_list,flags,'
             b'temporal_coordinates,spatial_coordinates,metadata\n')
VIA3 = VIA3_HEAD + b''.join(
    f'"{i}","[""P1_L_{m}_CC.jpg""]",0,"[]","[2,1,1,8,8]","{{}}"\n'.encode()
    for i, m in enumerate(('DM', 'CM')))
EMPTY = [make_regions(['P2_L_CM_CC.jpg'], c) for c in ('', '{}', '{ }', 'nan')]
FILES = {
    'JSON': {REGIONS_NAME.replace('.csv', '.json'): via_json()},
    'JSON under another name': {'via_export.json': via_json()},
    'CSV under another name': {'drawn.csv': make_regions().to_csv().encode()},
    'VIA 3': {REGIONS_NAME: VIA3}, 'VIA 3 under another name': {'annotations-export.csv': VIA3},
    'semicolon': {REGIONS_NAME: to_bytes(make_regions(), sep=';')},
    'UTF-16': {REGIONS_NAME: make_regions().to_csv(sep='\t').encode('utf-16')},
    'comma at the end': {REGIONS_NAME: to_bytes(make_regions()).replace(b'{}\n', b'{},\n')},
    'rectangles': region_file(cell='{"name":"rect","x":1,"y":1,"width":8,"height":8}'),
    'empty cells beside': {REGIONS_NAME: to_bytes(pd.concat([make_regions(), *EMPTY]))}}


@pytest.mark.parametrize('kind', FILES)
def test_region_files(tmp_path, jpeg, kind):
    found = read_dataset(lay_out(tmp_path, jpeg, regions=FILES[kind]))
    counts = found.images.set_index('image_name').n_regions
    assert counts[counts > 0].to_dict() == {'P1_L_DM_CC': 1, 'P1_L_CM_CC': 1}
    outlines, skipped = scaled_outlines(list(found.regions.geometry), (40, 60))
    assert len(outlines) == 2 and not skipped
    assert all(np.ptp(o, axis=0).tolist() == [8, 8] for o in outlines)


def test_foreign_json_is_rejected(tmp_path, jpeg):
    regions = {REGIONS_NAME.replace('.csv', '.json'): b'{"annotations": []}'}
    assert 'is not an export of VIA' in refusal(lay_out(tmp_path, jpeg, regions=regions))


def test_phantom_is_recognised_without_its_note(tmp_path, jpeg):
    assert not read_dataset(lay_out(tmp_path, jpeg)).phantom
    sheet = make_sheet().assign(Machine='phantom').to_csv().encode()
    assert read_dataset(lay_out(tmp_path, jpeg, {CSV_NAME: sheet})).phantom


def test_image_sizes_are_upright(tmp_path, jpeg):
    "A JPEG stored sideways has the size shown by a viewer."
    from PIL import Image
    lay_out(tmp_path, jpeg)
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('L', (60, 40)).save(tmp_path/FOLDERS['CM']/'P1_L_CM_CC.jpg', exif=exif)
    row = read_dataset(tmp_path).images.set_index('image_name').loc['P1_L_CM_CC']
    assert (row.original_width_px, row.original_height_px) == (40, 60)


def test_breast_table_scales_linearly(tmp_path):
    "Counted in calls, not seconds: more patients need no more calls per breast."
    def calls(n):
        count = 0
        def tick(*_):
            nonlocal count
            count += 1
        images = check_sheet(make_sheet(n)).assign(path=None, n_regions=0)
        sys.setprofile(tick)
        try: breasts(images)
        finally: sys.setprofile(None)
        return count
    assert calls(200) < 1.5*calls(20)
