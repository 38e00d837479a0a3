"""Write pictures of `cesm_app` for the site: its form, and the page of a phantom's breast.

usage: python tools/make_pictures.py RUN
RUN is a finished run on a phantom, such as runs/mine of the README, whose phantom is still there.
The first malignant test breast with both views is sent. Chromium takes the pictures,
`nbs/app_*.png`."""
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from starlette.testclient import TestClient

from cesm_nb.cases.web import make_app, make_site
from cesm_nb.core.runs import read_config, read_parts
from cesm_nb.data import breasts, read_dataset

ROOT = Path(__file__).resolve().parent.parent
HOME = 'http://127.0.0.1:8123'
SIZES = dict(form=(820, 790), prediction=(820, 1000)) # width, height in px


def open_pages(run):
    "HTML of the form and of the prediction; raise ValueError if the run is not of a phantom."
    config = read_config(run)
    if not config['phantom']: raise ValueError(f'{run} is of real images: name a run on a phantom')
    table = breasts(read_dataset(config['settings']['data_root']).images)
    parts = read_parts(run).query("split == 'test'")[['patient_id', 'side']]
    b = next(table.query('n_views == 2 and label == 2').merge(parts).itertuples())
    files = dict(CM_CC=b.cc_path, CM_MLO=b.mlo_path)
    sent = {k: (Path(p).name, Path(p).read_bytes()) for k, p in files.items()}
    site = make_site([run], 8123)
    fields = dict(token=site.token, name='phantom', side=b.side)
    with TestClient(make_app(site), HOME) as client:
        found = client.post('/ask', data=fields, files=sent, headers={'origin': HOME})
        return dict(form=client.get('/').text, prediction=found.text)


def take_picture(html, size, path):
    "Write what Chromium shows of a page, in 256 colours."
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))))
    with tempfile.TemporaryDirectory() as made:
        page, shot = Path(made)/'page.html', Path(made)/'shot.png'
        page.write_text(html, encoding='utf-8')
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
                 f'--user-data-dir={made}/profile', f'--window-size={size[0]},{size[1]}']
        subprocess.run([browser, *flags, f'--screenshot={shot}', page.as_uri()], check=True,
                       capture_output=True)
        picture = Image.open(io.BytesIO(shot.read_bytes())).convert('RGB').quantize(256)
        picture.save(path, optimize=True)


def main(run):
    "Write both pictures."
    for name, html in open_pages(run).items():
        take_picture(html, SIZES[name], ROOT/'nbs'/f'app_{name}.png')


if __name__ == '__main__': main(sys.argv[1])
