"Open the page of `cesm_check` in a browser and find the counts on it."
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cesm_nb.synthetic.phantom import make_phantom
from conftest import PATIENCE, REAL, ROOT, needs_data

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def check(data, out):
    "Run `cesm_check` as a user does; return its output."
    code = 'from cesm_nb.cli import cesm_check; cesm_check()'
    done = subprocess.run([sys.executable, '-c', code, data, '--out', out], capture_output=True,
                          text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def counts_in_browser(page):
    "Read a page in the browser: kind -> count, kind -> number of names listed, and the page."
    if BROWSER is None: pytest.skip('no Chromium on PATH: install it to test the page in a browser')
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
               Path(page).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    dom = done.stdout
    lists = re.finditer(r'<summary>(.*?): \d+</summary>.*?<ul>(.*?)</ul>', dom, re.S)
    listed = {m[1]: m[2].count('<li>') for m in lists}
    return {k: int(n) for k, n in re.findall(r'data-kind="([^"]+)">(\d+)', dom)}, listed, dom


def test_phantom_page(tmp_path):
    data = make_phantom(tmp_path/'data', n_patients=8, size_px=80, progress=False)
    image = next(data.glob('Sub*/*.jpg'))
    image.write_bytes(image.read_bytes()[:500])
    printed = check(data, tmp_path/'out')
    assert printed.rstrip().splitlines()[-1].startswith('PHANTOM')
    shown, listed, dom = counts_in_browser(tmp_path/'out'/'index.html')
    expected = pd.read_csv(tmp_path/'out'/'problems.csv').kind.value_counts().to_dict()
    assert shown == listed == expected
    assert shown['image cannot be used'] == 1 and image.stem.strip() in dom
    assert 'Looked for and not found: same pixels' in dom and 'PHANTOM' in dom


@needs_data
def test_real_page(tmp_path):
    check(REAL, tmp_path/'out')
    shown, listed, dom = counts_in_browser(tmp_path/'out'/'index.html')
    assert shown == listed
    expected = {'trailing blank in the name': 5, 'second copy of a view': 4}
    assert expected.items() <= shown.items()
    for name in ('P3_L_CM_CC', 'P99_L_CM_MLO_2', 'P281_L_DM_MLO2'): assert f'<li>{name}' in dom
    absent = ('image cannot be used, same pixels under two names, same picture of two patients, '
              'breast on the other side')
    assert f'not found: {absent}' in dom
