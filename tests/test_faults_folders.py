"Data folders with odd names, dead links and damaged images; split files of other programs."
import json
import os
import warnings
import zipfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cesm_nb.cohort.quality import quality_report
from cesm_nb.cohort.splits import read_splits
from cesm_nb.core.errors import explain_cell, explain_error
from cesm_nb.core.settings import TensorConfig
from cesm_nb.core.terms import FOLDERS, SHEET_COLUMNS
from cesm_nb.data import breasts, plot_breast, read_dataset
from cesm_nb.evaluate import evaluate
from cesm_nb.io.tables import read_table
from cesm_nb.leakage.split_audit import audit_split, read_foreign
from cesm_nb.synthetic.predictions import simulate_predictions, simulate_run
from cesm_nb.tensorize import prepare

ODD = os.fsdecode(b'\xfcbersicht') # a name in Latin-1


@pytest.fixture
def data(tmp_path):
    "One annotated breast: a sheet and two subtracted images."
    (home := tmp_path/FOLDERS['CM']).mkdir()
    rows = [
        dict.fromkeys(SHEET_COLUMNS, '_') | {
            'Patient_ID': '1', 'Side': 'L', 'Image_name': f'P1_L_CM_{v}', 'Type': 'CESM',
            'View': v, 'Age': '50', SHEET_COLUMNS[-1]: 'Benign', 'Breast density (ACR)': 'B'
        } for v in ('CC', 'MLO')
    ]
    pd.DataFrame(rows).to_csv(tmp_path/'Radiology-manual-annotations.csv', index=False)
    for r in rows:
        Image.fromarray(np.arange(40*30, dtype=np.uint8).reshape(40, 30)).save(
            home/f"{r['Image_name']}.png")
    return tmp_path


def test_names_that_are_not_utf8(data):
    "A file whose name is not UTF-8 is listed, printable; a run folder of that kind is rejected."
    before = read_dataset(data).fingerprint
    home = data/FOLDERS['CM']
    (home/f'{ODD}.jpg').write_bytes((home/'P1_L_CM_CC.png').read_bytes())
    found = read_dataset(data)
    assert found.fingerprint != before
    named = quality_report(found)[1]
    named.to_csv().encode()
    assert named.image_name[named.kind.str.startswith('file that no row')].tolist() == [
        '_bersicht.jpg']
    with pytest.raises(ValueError, match='choose another name'):
        prepare(TensorConfig(data_root=str(data), run_dir=str(data/ODD)))
    assert not (data/ODD).exists()


def test_dead_links_are_absent_images(data):
    "A dead symbolic link, used by a row or not, counts as an absent file."
    home = data/FOLDERS['CM']
    (home/'P1_L_CM_CC.png').unlink()
    for name in ('P1_L_CM_CC.png', 'P9_L_CM_CC.jpg', 'P9_L_CM_MLO.jpg.tmp'):
        (home/name).symlink_to('../.git/annex/objects/x/y')
    os.mkfifo(home/'P8_L_CM_CC.jpg')
    facts, named = quality_report(found := read_dataset(data))
    assert facts['image files present (CM)'] == 1 and len(found.fingerprint) == 16
    assert named.image_name[named.kind == 'file absent (CM)'].tolist() == ['P1_L_CM_CC']


def test_damaged_images_leave_an_empty_frame(data):
    "Figures of breasts name images that are empty, damaged or absent instead of stopping."
    home = data/FOLDERS['CM']
    (home/'P1_L_CM_CC.png').write_bytes(b'')
    (home/'P1_L_CM_MLO.png').write_bytes(b'no image')
    table = breasts(read_dataset(data).images)
    fig, axs = plt.subplots(1, 2)
    plot_breast(table.iloc[0], axs)
    assert [ax.texts[0].get_text() for ax in axs] == ['cannot be used']*2
    plot_breast(table.iloc[0].copy().replace({table.cc_path[0]: None}), axs)
    assert axs[0].texts[-1].get_text() == 'no image'
    plt.close(fig)


@pytest.mark.parametrize('text, by_breast', [
    ('patient_id,side,split\n1,L,train\n1,R,train\n2,L,val\n3,R,test\n', True),
    ('patient_id,side,split,\n1,L,train,\n1,R,train,\n2,L,val,\n3,R,test,\n', True),
    ('\ufeffPatient_ID;Side;Split\nP1;left;Train\nP1;right;training\nP002;L;validation\n'
     '3.0;R;TEST\n', True),
    ('patient_id\tsplit\tfold\nP1\ttrain\t0\n2\tdev\t0\n3\ttest\t0\n', False),
])
def test_split_files_of_other_programs(text, by_breast, tmp_path):
    "Separators, spellings, trailing commas and workbooks give one split."
    table = pd.DataFrame(dict(patient_id=[1, 1, 2, 3], side=['L', 'R', 'L', 'R']))
    (path := tmp_path/'split.csv').write_text(text, 'utf-8')
    assert read_splits(path, table).split.tolist() == ['train', 'train', 'val', 'test']
    sep = next(c for c in ';\t,' if c in text)
    rows = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
    rows.to_excel(book := tmp_path/'split.xlsx', index=False)
    assert read_splits(book, table).split.tolist() == ['train', 'train', 'val', 'test']
    path.write_text(text.replace('3', 'x'), 'utf-8')
    with pytest.raises(ValueError, match='patient_id is not a number such as 12 or P12'):
        read_splits(path, table)
    path.write_text(text + text.splitlines()[-1] + '\n', 'utf-8')
    with pytest.raises(ValueError, match=f'P3{"_R" if by_breast else ""} twice; expected one line'):
        read_splits(path, table)


def test_foreseeable_errors_name_cause_and_option():
    "Read-only folders, absent shared memory, threads, backends and kernels are no bug to report."
    class NoSuchKernel(KeyError): pass
    for e, sentence in [
        (OSError(30, 'Read-only file system', 'runs'), '--out or --run-dir'),
        (OSError(38, 'Function not implemented'), '/dev/shm'),
        (NoSuchKernel('python3'), 'ipykernel'),
        (RuntimeError("can't start new thread"), 'ulimit'),
        (ValueError("Key backend: 'x' is not a valid value for backend"), 'unset MPLBACKEND')
    ]:
        assert sentence in explain_error(e) and 'unforeseen' not in explain_error(e)
    found = explain_cell('ModuleNotFoundError', "No module named 'cesm_nb'")
    assert found.startswith('ModuleNotFoundError') and 'ipykernel install' in found
    assert explain_cell('ValueError', 'x') == 'ValueError: x'


def test_audit_reads_a_split_from_a_workbook(tmp_path):
    "A split in a workbook is audited like the same rows in a text file; lines are named."
    rows = dict(patient_id=[1, 1, 2, 3], side=['L', 'R', 'L', 'R'],
                split=['train', 'test', 'val', 'Test'], note='')
    (table := pd.DataFrame(rows)).to_csv(text := tmp_path/'s.csv', index=False)
    table.to_excel(book := tmp_path/'s.xlsx', index=False)
    pd.testing.assert_frame_equal(read_foreign(book), read_foreign(text))
    assert audit_split(read_foreign(book)).found['patients of test in train'] == 1
    table.assign(split=['train', 'test', 'x', 'val']).to_excel(book, index=False)
    with pytest.raises(ValueError, match="s.xlsx line 4: part 'x'"): read_foreign(book)


def test_strict_workbooks_are_named_without_warnings(tmp_path):
    "A Strict Open XML workbook gives the sentence that says how to save it, and nothing else."
    pd.DataFrame(dict(case=['A'])).to_excel(path := tmp_path/'s.xlsx', index=False)
    with zipfile.ZipFile(path) as z: parts = {n: z.read(n) for n in z.namelist()}
    old, new = b'http://schemas.openxmlformats.org/', b'http://purl.oclc.org/ooxml/'
    with zipfile.ZipFile(path, 'w') as z:
        for name, content in parts.items():
            for kind in (b'spreadsheetml', b'officeDocument'):
                content = content.replace(old + kind + b'/2006', new + kind)
            z.writestr(name, content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        with pytest.raises(ValueError, match='Strict Open XML.*save it as'):
            read_table(path, ('case',))
    assert not warned


def test_metrics_are_json_for_any_program(tmp_path):
    "Scores that cannot be computed, as of a single class, are null instead of NaN."
    part = lambda name, seed, kind: simulate_predictions(60, seed, name).query(f'label == {kind}')
    run = simulate_run(tmp_path/'run', test := part('test', 0, 0))
    pd.concat([test, part('val', 1, 1).assign(patient_id=lambda t: t.patient_id + 100)]).to_csv(
        run/'predictions.csv', index=False)
    evaluate(run, tmp_path/'out', n_draws=10, inside=False)
    def no_json(word): raise ValueError(f'{word} is no JSON')
    text = (tmp_path/'out'/'metrics.json').read_text()
    assert json.loads(text, parse_constant=no_json)['scores'] and 'null' in text


def test_audit_rejects_ambiguous_splits_and_reads_other_forms(tmp_path):
    "A column twice, a side in some rows alone, extra separators, title lines and encodings."
    (path := tmp_path/'s.csv').write_text('patient_id,side,split\n1,L,train\n2,R,test\n')
    expected = read_foreign(path)
    for header in ('patient_id,side,split,Split', 'patient_id,side,split,split'):
        path.write_text(f'{header}\n1,L,train,test\n2,R,test,test\n')
        with pytest.raises(ValueError, match=r"column \['split'\] more than once"):
            read_foreign(path)
    path.write_text('patient_id,side,split\n1,L,train\n2,,test\n')
    with pytest.raises(ValueError, match="line 3: '2': expected .* side L or R"): read_foreign(path)
    for text, encoding in [
        ('patient_id,side,split\n1,L,train,\n2,R,test,\n', 'utf-8'),
        ('A title\n\nPatient ID;Side;Split\n1;L;train\n2;R;test\n', 'utf-16')
    ]:
        path.write_text(text, encoding)
        found = read_foreign(path)
        pd.testing.assert_frame_equal(found, expected.set_axis(found.index))
