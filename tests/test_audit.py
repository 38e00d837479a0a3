"`cesm_audit` as a user runs it: page in a browser, same numbers, errors, real annotation files."
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

from cesm_nb.cli import cesm_audit as main
from cesm_nb.data import read_dataset
from cesm_nb.reporting.tables import with_interval
from conftest import PATIENCE, REAL, ROOT, needs_data

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
QUICK = ('--n-repeats', 1, '--n-trees', 10, '--n-draws', 100)
CODE = 'from cesm_nb.cli import cesm_audit; cesm_audit()'


def audit(*args):
    "Run `cesm_audit`; return exit code and output."
    done = subprocess.run([sys.executable, '-c', CODE, *map(str, args)], capture_output=True,
                          text=True, cwd=ROOT, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def audit_here(*args):
    "The same in this process, which is faster; return the output."
    output = io.StringIO()
    try:
        with redirect_stdout(output): main(list(map(str, args)))
    except SystemExit as e:
        return (e.code, output.getvalue()) if isinstance(e.code, int) else (1, str(e))
    return 0, output.getvalue()


def scores(out, score, unit='patient'):
    "(control, label) -> row of one score in `controls.csv`."
    t = pd.read_csv(out/'controls.csv')
    return t[(t.score == score) & (t.split_unit == unit)].set_index(['control', 'label'])


def in_browser(page):
    "Read from the browser: text of the verdict, controls in the table, pixels of the figure."
    if BROWSER is None: pytest.skip('no Chromium on PATH: install it to test the page in a browser')
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
               Path(page).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    verdict = re.search(r'id="verdict"><b>(.*?)</b>', done.stdout, re.S)[1]
    return verdict, re.findall(r'data-control="([^"]+)"', done.stdout), done.stdout


def test_page_of_a_phantom(phantom, tmp_path):
    code, output = audit(phantom, '--out', tmp_path/'out', *QUICK)
    assert code == 0, output
    verdict, controls, dom = in_browser(tmp_path/'out'/'index.html')
    mark, finding = verdict.split('. ')[:2]
    assert verdict in output and mark.startswith('PHANTOM') and finding in ('Yes', 'In part')
    assert f'\n\nPHANTOM, open {tmp_path}/out/index.html in a browser' in output
    assert output.index(verdict) < output.index('mask shapes') # the answer comes before the table
    table = pd.read_csv(tmp_path/'out'/'controls.csv')
    rows = table[['control', 'label', 'split_unit']].to_numpy()
    assert sorted(controls) == sorted({'|'.join(row) for row in rows})
    assert 'PHANTOM' in dom and 'src="data:image/png' in dom and 'src="http' not in dom
    files = {'index.html', 'controls.csv', 'controls.md', 'controls.tex', 'controls.png',
             'controls.svg', 'settings.json'}
    assert {f.name for f in (tmp_path/'out').iterdir()} == files


def test_same_seed_same_bytes_without_images(phantom, tmp_path):
    "Annotation files elsewhere, no image folder, another process: the same page to the byte."
    for f in ('Radiology-manual-annotations.xlsx', 'phantom.json'):
        shutil.copy(phantom/f, tmp_path/f)
    regions = tmp_path/'drawn.csv'
    shutil.copy(phantom/'Radiology_hand_drawn_segmentations_v2.csv', regions)
    elsewhere = tmp_path, '--regions', regions, *QUICK
    assert audit(phantom, '--out', tmp_path/'a', *QUICK)[0] == 0
    assert audit_here(*elsewhere, '--out', tmp_path/'b', '--n-jobs', 1)[0] == 0
    for f in (tmp_path/'a').iterdir():
        assert f.read_bytes() == (tmp_path/'b'/f.name).read_bytes(), f.name
    assert audit_here(*elsewhere, '--out', tmp_path/'c', '--seed', 1)[0] == 0
    assert not scores(tmp_path/'c', 'auc').value.equals(scores(tmp_path/'a', 'auc').value)


def test_invalid_input_is_rejected(phantom, tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'broken.csv').write_text('a,b\n1,2\n')
    via = pd.read_csv(phantom/'Radiology_hand_drawn_segmentations_v2.csv', dtype=str)
    via.assign(region_shape_attributes='{"name":"star"}').to_csv(tmp_path/'stars.csv', index=False)
    for args, message in [
            ((tmp_path/'empty',), 'lacks the annotation sheet'),
            ((phantom, '--regions', 'no.csv'), 'no.csv is absent'),
            ((phantom, '--regions', tmp_path/'broken.csv'), 'has no column'),
            ((phantom, '--regions', tmp_path/'stars.csv'), 'but none that can be drawn, such as'),
            ((phantom, '--n-folds', 40), 'fewer than 40 folds')]:
        code, output = audit_here(*args, '--out', tmp_path/'out')
        assert code != 0 and 'Traceback' not in output, output
        assert 'cesm_audit: ' in output and message in output, output
        assert not (tmp_path/'out').exists()


@needs_data
def test_real_annotations(tmp_path):
    "Values measured before on CDD-CESM, within noise; `tools/bench_commands.py` times it."
    code, output = audit(REAL, '--out', tmp_path)
    assert code == 0, output
    accuracy, auc, loss = (scores(tmp_path, s) for s in ('accuracy', 'auc', 'log_loss'))
    for name, share, area in [('DM + CM', .88, .96), ('DM', .86, .95), ('CM', .80, .89)]:
        key = f'mask shapes, {name}', 'all rows'
        assert abs(accuracy.value[key] - share) < .03 and abs(auc.value[key] - area) < .02, name
        assert accuracy.breasts[key] == 566
        assert accuracy.low[key] < accuracy.value[key] < accuracy.high[key]
    files = json.loads((tmp_path/'settings.json').read_text())['files']
    assert files['region_is_abnormal']['CM rows'] == .9929
    reader = 'BI-RADS of the same images (circular), CM', 'CM rows'
    assert abs(accuracy.value[reader] - .94) < .02 and abs(auc.value[reader] - .964) < .01
    shares = 'nothing: class shares', 'all rows'
    assert abs(loss.value[shares] - 1.0985) < .002
    assert loss.high[reader] < loss.value[shares] < loss.low['age', 'all rows']
    by_fold = scores(tmp_path, 'auc_folds').value[shares]
    assert abs(by_fold - .5) < 1e-9 # within a fold all breasts get the same prediction
    table = pd.read_csv(tmp_path/'controls.csv')
    bare = table[table.low.isna()] # no interval: only where each fold has 0.5 by construction
    assert set(bare.score) <= {'auc_folds'} and (bare.value == .5).all()
    assert table['seed 2'].notna().all()
    assert set(table.score) == {'accuracy', 'auc', 'auc_folds', 'auc_malignant', 'auc_abnormal',
                                'log_loss'}
    if (REAL/'image_sizes.csv').exists(): # the available sizes do not reveal the class
        sized = 'image size, CM', 'CM rows, size known'
        assert auc.low[sized] < .52 and auc.high[sized] > .48 and auc.value[sized] < .55
        assert auc.breasts[sized] < 566
    machine = 'machine', 'all rows'
    assert auc.low[machine] < .52 and auc.value[machine] < .55
    permuted = ('permuted labels, mask shapes, DM + CM', 'all rows')
    assert abs(accuracy.value[permuted] - 1/3) < .03 and auc.low[permuted] < .5 < auc.high[permuted]
    contralateral = ('label of the other breast, if it trains', 'all rows')
    assert auc.high[contralateral] < .55
    assert scores(tmp_path, 'auc', 'breast').low[contralateral] > .55
    page = (tmp_path/'index.html').read_text()
    assert not re.search(r'P\d+_[LR]', page) # no data of single patients
    assert in_browser(tmp_path/'index.html')[0].startswith('Yes.')


def test_published_audit():
    "From a clean commit and real data, with the value of every seed and no patient data."
    folder = ROOT/'results'/'audit'
    settings = json.loads((folder/'settings.json').read_text())
    assert re.fullmatch('[0-9a-f]{40}', settings['commit'])
    assert settings['files']['phantom'] is False
    table = pd.read_csv(folder/'controls.csv')
    assert {f'seed {i}' for i in range(settings['settings']['n_repeats'])} <= set(table)
    for f in folder.iterdir(): assert not re.search(rb'P\d+_[LR]', f.read_bytes()), f.name


def test_breasts_with_images_are_scored_separately(phantom, tmp_path):
    "If images are missing, subtracted rows are also scored on breasts with one; both are reported."
    shutil.copytree(phantom, tmp_path/'copy')
    images = (tmp_path/'copy').rglob('*_CM_*.jpg')
    lost = [f for f in images if int(re.match(r'P(\d+)_', f.name)[1]) % 4 == 0]
    for f in lost: f.unlink()
    code, output = audit_here(tmp_path/'copy', '--out', tmp_path/'out', '--n-jobs', 1, *QUICK)
    assert code == 0 and lost, output
    auc = scores(tmp_path/'out', 'auc')
    own, every = (auc.loc[('mask shapes, CM', k)] for k in ('CM rows, image on disk', 'CM rows'))
    assert 0 < own.breasts < every.breasts
    size = f'on the {own.breasts:.0f} breasts that have an image on disk'
    assert f'{with_interval(own)} {size}' in output
    page = (tmp_path/'out'/'index.html').read_text()
    assert 'Rows with the label <i>CM rows, image on disk</i>' in page
    files = json.loads((tmp_path/'out'/'settings.json').read_text())['files']
    classes = 'normal', 'benign', 'malignant'
    assert sum(files[f'{c} (CM rows, image on disk)'] for c in classes) == own.breasts


def test_image_sizes_are_a_control(phantom, tmp_path):
    "Sizes that reveal the class are detected; a file without the columns is rejected by name."
    for f in ('Radiology-manual-annotations.xlsx', 'Radiology_hand_drawn_segmentations_v2.csv',
              'phantom.json'):
        shutil.copy(phantom/f, tmp_path/f)
    images = read_dataset(phantom).images
    names, widths = images.image_name + '.jpg', 1000 + 100*images.label
    sizes = pd.DataFrame(dict(filename=names, width=widths, height=2000))
    sizes.to_csv(tmp_path/'image_sizes.csv', index=False)
    assert audit_here(tmp_path, '--out', tmp_path/'out', '--n-jobs', 1, *QUICK)[0] == 0
    assert scores(tmp_path/'out', 'auc').value['image size, CM', 'CM rows, size known'] > .9
    sizes.rename(columns=dict(width='w')).to_csv(tmp_path/'image_sizes.csv', index=False)
    code, output = audit_here(tmp_path, '--out', tmp_path/'no', *QUICK)
    assert code != 0 and "has no column ['width']" in output


def test_demo_reports_what_each_leak_is_worth(tmp_path):
    "Makes phantom, page and table; the page starts with the result, marked as a phantom's."
    code, output = audit_here('--demo', '--out', tmp_path)
    assert code == 0, output
    values = re.search(r'Worth in macro AUC above chance, without an image: (.*)\.', output)[1]
    for leak in ('drawn regions, their shapes', 'drawn regions, present or not', 'missing density',
                 'missing views'):
        assert re.search(rf'{leak} [+-]0\.\d{{3}}', values), leak
    page = (tmp_path/'index.html').read_text()
    title = r'<h1>PHANTOM: Do drawn regions reveal the label\? (Yes|In part)</h1>\n'
    assert re.search(title + '<p class="lead" id="verdict"><b>PHANTOM', page)
    sentence = f'Worth in macro AUC above chance, without an image: {values}.'
    assert f'<p id="prices">{sentence}</p>' in page


def test_split_made_by_others(phantom, tmp_path):
    "A split by image puts patients in two parts: reported first, and even without the data set."
    images = read_dataset(phantom).images
    parts = ['train', 'train', 'test']*(len(images) // 3) + ['test']*(len(images) % 3)
    split = pd.DataFrame(dict(image_name=images.image_name, split=parts))
    split.to_csv(tmp_path/'by_image.csv', index=False)
    code, output = audit_here(phantom, '--splits', tmp_path/'by_image.csv', '--out', tmp_path/'out')
    sentence = r'PHANTOM: by_image\.csv: (\d+) of its (\d+) test patients are in its training part'
    first = re.match(sentence, output)
    table = pd.read_csv(tmp_path/'out'/'split_audit.csv', index_col=0)
    counts = table.loc['patients of test in train', ['found', 'of']]
    assert code == 0 and tuple(map(int, first.groups())) == tuple(counts) and int(first[1]) > 0
    without_data = tmp_path/'none', '--splits', tmp_path/'by_image.csv', '--out', tmp_path/'out'
    _, output = audit_here(*without_data)
    assert f'{first[1]} of its {first[2]} test patients' in output
    assert 'none is not a data set: labels and files were not checked' in output
    (tmp_path/'odd.csv').write_text('patient_id,split\n1,holdout\n')
    code, output = audit_here(phantom, '--splits', tmp_path/'odd.csv', '--out', tmp_path/'out')
    assert code != 0 and "odd.csv line 2: part 'holdout': expected one of train" in output


def test_gate_ends_with_status_3(phantom, tmp_path, capsys):
    "A leak above the limit, or a fault of a split: status 3, the reasons, and all results."
    report, fixed = tmp_path/'a.json', tmp_path/'fixed.csv'
    here = '--out', tmp_path/'out', '--json', report
    code, output = audit_here(phantom, *here, *QUICK, '--n-jobs', 1, '--fail-above', .6)
    found, printed = json.loads(report.read_text()), capsys.readouterr().err
    assert code == 3 and 'Worth in macro AUC' in output and (tmp_path/'out'/'index.html').exists()
    assert 'drawn regions, their shapes' in found['faults'] and found['phantom'] is True
    assert 'cesm_audit: drawn regions, their shapes: macro AUC 0.' in printed
    assert found['leaks']['drawn regions, their shapes']['auc'] > .6
    limit = max(v['auc'] for v in found['leaks'].values()) + .001
    assert audit_here(phantom, *here, *QUICK, '--n-jobs', 1, '--fail-above', limit)[0] == 0
    assert json.loads(report.read_text())['faults'] == []

    images = read_dataset(phantom).images
    parts = pd.Series(['train', 'train', 'test']*len(images))[:len(images)]
    split = tmp_path/'s.csv'
    pd.DataFrame(dict(image_name=images.image_name, split=parts)).to_csv(split, index=False)
    code, output = audit_here(phantom, '--splits', split, *here, '--fail-above', .9,
                              '--repaired', fixed)
    assert code == 3 and f'train on it with --splits-csv {fixed}' in output
    assert 'patients of test in train' in json.loads(report.read_text())['faults']
    code, output = audit_here(phantom, '--splits', fixed, *here, '--fail-above', .9)
    found = json.loads(report.read_text())
    assert (code, found['faults']) == (0, []) and found['checks']['entries in two parts']['of'] > 0
    assert 'A classifier separates test from training breasts with an AUC of 0.' in output
    assert audit_here(phantom, '--repaired', fixed)[1].endswith('--repaired needs --splits FILE, '
                                                                'the split to repair')


PUBLISHED = REAL and REAL.parent/'splits'/'versamammo.csv'
needs_published = pytest.mark.skipif(
    not (PUBLISHED and PUBLISHED.exists()),
    reason='set CESM_DATA and put versamammo.csv (leakage.split_audit) into splits/ '
    'beside that folder')


@needs_published
def test_published_split(tmp_path):
    _, output = audit_here(REAL, '--splits', PUBLISHED, '--out', tmp_path)
    sentence = 'versamammo.csv: 140 of its 158 test patients are in its training part'
    assert output.startswith(sentence)


@needs_published
def test_public_splits_are_recounted(tmp_path, monkeypatch):
    "The tool reproduces the published table and rejects an unknown split."
    import count_public_splits as tool
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['count_public_splits.py', str(REAL), *map(str, args)])
        tool.main()
    run('--list', f'VersaMammo={PUBLISHED}', '--out', tmp_path/'public_splits.csv')
    published = ROOT/'results'/'public_splits.csv'
    assert (tmp_path/'public_splits.csv').read_text() == published.read_text()
    table = pd.read_csv(published, index_col=0)
    assert table.in_training['VersaMammo'] == 140
    assert table.draws['CDD-CESM helper'] == 99 and table.lowest['CDD-CESM helper'] > .9
    with pytest.raises(SystemExit, match='unknown splits'): run('--list', f'other={PUBLISHED}')


def test_commit_is_read_before_writing(tmp_path, monkeypatch):
    "A page inside the checkout does not make its own commit count as modified."
    from cesm_nb.leakage import audit
    from cesm_nb.synthetic.phantom import make_phantom
    data, out = make_phantom(tmp_path/'phantom', 20, size_px=64, progress=False), tmp_path/'out'
    published = pd.read_csv(ROOT/'results'/'audit'/'controls.csv')
    monkeypatch.setattr(audit, 'run_controls', lambda *args: published)
    monkeypatch.setattr(audit, 'find_commit', lambda: 'f'*40 + '+changes'*out.exists())
    audit.write_audit(data, out, progress=False)
    assert json.loads((out/'settings.json').read_text())['commit'] == 'f'*40
