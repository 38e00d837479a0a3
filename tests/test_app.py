"The local page: predictions, rejected requests, isolated clients, and keyboard use in a browser."
import base64
import itertools
import json
import re
import shutil
import subprocess
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_server

import pytest
import websocket
from starlette.testclient import TestClient

from cesm_nb.cases import predict, web as page
from cesm_nb.cli import cesm_app
from cesm_nb.data import breasts, read_dataset
from cesm_nb.cases.page import page_of
from cesm_nb.imaging.dicom import Upload
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.cases.predict import predict_case
from cesm_nb.core.settings import TrainConfig
from cesm_nb.train import fit

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
TINY = dict(image_size=32, epochs=1, batch_size=8, backbones='mobilenetv3_small_050',
            mixed_precision='no', device='cpu')
HOME = 'http://127.0.0.1:8123'
ORIGIN = {'origin': HOME}


@pytest.fixture(scope='module')
def data(module_path):
    root = make_phantom(module_path/'phantom', 20, seed=1, signal=2., size_px=120, progress=False)
    return read_dataset(root)


@pytest.fixture(scope='module')
def site(module_path, data):
    folders = dict(data_root=str(data.root), run_dir=str(module_path/'run'))
    run = fit(TrainConfig(protocol='clinical', **folders, **TINY))
    return page.make_site([run.run_dir], 8123)


@pytest.fixture
def client(site):
    "A client whose requests share one event loop, as those of the server do."
    with TestClient(page.make_app(site), HOME) as found: yield found


@pytest.fixture(scope='module')
def cases(data):
    "Two breasts: fields with their files."
    def files(b):
        paths = dict(CM_CC=b.cc_path, CM_MLO=b.mlo_path)
        return {k: (f'{b.side}.jpg', Path(path).read_bytes()) for k, path in paths.items()}
    return [files(b) for b in breasts(data.images).query('n_views == 2').head(2).itertuples()]


def form(site, **fields): return dict(token=site.token, name='mine', anyway='1') | fields


def send(client, site, files, headers=ORIGIN, **fields):
    "Submit the form with these files."
    return client.post('/ask', data=form(site, **fields), files=files, headers=headers)


def test_app_returns_the_case_page(client, site, cases):
    empty = client.get('/')
    assert empty.status_code == 200
    assert empty.text.index('Research use only') < empty.text.index('<form')
    assert re.findall(r'type="file" name="(\w+)"', empty.text) == ['exam', 'CM_CC', 'CM_MLO']
    fields = re.findall(r'<(?:select|input type="(?!hidden)|input name)', empty.text)
    assert len(re.findall('<label>', empty.text)) == len(fields)
    response = send(client, site, cases[0])
    assert response.status_code == 200 and 'PHANTOM' in response.text
    assert response.text.index('Research use only') < response.text.index('mine, ')
    assert re.search(r'evidence of nothing\.<br>\s*mine, ', response.text) # separate sentences
    for r in (empty, response, client.get('/nowhere')):
        policy = r.headers['content-security-policy']
        assert "default-src 'none'" in policy and not re.search('script|unsafe|http', policy)
        assert r.headers['cache-control'] == 'no-store'
        assert r.headers['x-content-type-options'] == 'nosniff'
        assert not re.search(r'<script|<link|@import|style="|(?:src|href)="(?!data:|/")', r.text)
        assert 'access-control-allow-origin' not in r.headers


@pytest.mark.parametrize('headers', [
    {}, {'origin': 'http://evil.example'}, {'origin': 'null'}, {'origin': 'http://127.0.0.1:9'},
    {'origin': 'http://localhost:8123'}, ORIGIN | {'sec-fetch-site': 'cross-site'},
    ORIGIN | {'host': 'evil.example:8123'}, ORIGIN | {'host': '127.0.0.1'}], ids=str)
def test_cross_site_form_is_rejected(client, site, cases, headers):
    response = send(client, site, cases[0], headers)
    assert response.status_code == 403 and 'mine' not in response.text


def test_other_hosts_and_tokens_are_rejected(client, site, cases):
    for host in ('evil.example', 'evil.example:8123', '127.0.0.1:80', ''):
        assert client.get('/', headers={'host': host}).status_code == 403
    for token in ('', 'x', site.token[:-1], 'é'):
        assert send(client, site, cases[0], token=token).status_code == 403


def test_other_paths_are_not_served(client):
    for path in ('/etc/passwd', '/../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/ask/..%2f..',
                 '//etc/passwd', '/docs', '/openapi.json'):
        assert client.get(path).status_code in (404, 405), path
    headers = dict(host='evil.example') # a redirect would send the form there
    away = client.post('/ask/', headers=headers, follow_redirects=False)
    assert away.status_code == 404 and 'location' not in away.headers
    for method in ('GET', 'PUT', 'DELETE', 'OPTIONS'):
        assert client.request(method, '/ask').status_code in (404, 405)


def test_invalid_forms(client, site, cases, monkeypatch):
    def post(files=cases[0], **fields): return send(client, site, files, **fields)
    def post_raw(content, kind):
        return client.post('/ask', content=content, headers=ORIGIN | {'content-type': kind})
    twice = [('CM_CC', cases[0]['CM_CC'])]*2
    rejected = [
        (post(dict(CM_CC=('a.txt', b'a letter'))), 422,
         'a.txt is not used: it is neither DICOM nor JPEG nor PNG|a.txt cannot be read'),
        (post(dict(CM_CC=('a.html', b'<script>alert(1)</script>'))), 422, 'a.html'),
        (post(dict(CM_CC=('<img src=x>.jpg', b'\xff\xd8\xff'))), 422, '&lt;img src=x&gt;.jpg'),
        (post(dict(CM_CC=('../../etc/cron.d/x.jpg', b'\xff\xd8\xff'))), 422, '>X?x.jpg'),
        (post({}), 415, 'No form with files'),
        (post(dict(CM_CC=('..\\..\\win.jpg', b'\xff\xd8\xff'))), 422, 'win.jpg'),
        (post(dict(DM_CC=cases[0]['CM_CC'])), 422, 'no model uses a file in the field'),
        (post(age_years='old'), 422, 'is no number'),
        (post(age_years='3'), 422, 'expected 10 to 120'),
        (post(density='E'), 422, 'expected one of'),
        (post(side='X'), 422, 'side is'),
        (post(name='x'*2000), 400, 'cannot be read'),
        (post_raw(b'{}', 'application/json'), 415, 'No form with files'),
        (post_raw(b'--x', 'multipart/form-data'), 400, 'cannot be read'),
        (post(twice), 400, 'came twice')]
    for response, status, message in rejected:
        text = re.search(r'role="alert">(.*?)</p>', response.text, re.S)[1].replace('&#39;', "'")
        assert response.status_code == status and re.search(message, '>' + text), (status, text)
        assert not re.search('Traceback|<script|etc/', response.text)
    monkeypatch.setattr(page, 'LIMIT_MB', 1)
    large = dict(CM_CC=('a.jpg', b'\xff\xd8' + bytes(2**20)))
    assert post(large).status_code == 413
    body = client.build_request('POST', '/ask', data=form(site), files=large).read()
    pieces = (body[i:i + 9999] for i in range(0, len(body), 9999)) # no length: counted on arrival
    assert post_raw(pieces, 'multipart/form-data; boundary=x').status_code in (400, 413)


def test_clients_are_isolated(client, site, cases):
    def predict(i): return send(client, site, cases[i % 2], name=f'case-{i}').text
    def result(text): # numbers and picture
        return re.search(r'src="data:.*?<h2>Prediction.*?</table>', text, re.S)[0]
    alone = [predict(i) for i in (0, 1)]
    with ThreadPoolExecutor(4) as pool: concurrent = list(pool.map(predict, range(4)))
    assert result(alone[0]) != result(alone[1])
    for i, text in enumerate(concurrent):
        assert f'case-{i}' in text and not any(f'case-{j}' in text for j in range(4) if j != i)
        assert result(text) == result(alone[i % 2])


def test_no_file_is_kept_by_default(site, cases, tmp_path, monkeypatch):
    absent = str(tmp_path/'tmp') # making a temporary file would be an error
    monkeypatch.setenv('TMPDIR', absent)
    monkeypatch.setattr('tempfile.tempdir', absent)
    def post(site): return send(TestClient(page.make_app(site), HOME), site, cases[0], name='../x')
    assert post(site).status_code == 200 and list(tmp_path.iterdir()) == []
    (tmp_path/'kept').mkdir()
    keeping = site._replace(keep=tmp_path/'kept')
    assert post(keeping).status_code == post(keeping).status_code == 200
    names = [f'{n}-___x.{k}' for n in ('001', '002') for k in ('html', 'json')]
    assert sorted(p.name for p in tmp_path.rglob('*.*')) == names


def test_predictions_are_kept_or_reported_as_unwritable(site, cases, tmp_path, monkeypatch):
    "Numbers are not reused, a deleted folder is remade, an unwritable prediction is still shown."
    keeping = site._replace(keep=tmp_path/'kept')
    def post(): return send(TestClient(page.make_app(keeping), HOME), site, cases[0], name='x')
    assert f'Kept as 001-x.html in {tmp_path}/kept.' in post().text
    assert 'Kept as 002-x.html' in post().text
    second = (tmp_path/'kept'/'002-x.html').read_bytes()
    for f in (tmp_path/'kept').glob('001-*'): f.unlink()
    assert 'Kept as 003-x.html' in post().text
    assert (tmp_path/'kept'/'002-x.html').read_bytes() == second
    shutil.rmtree(tmp_path/'kept')
    assert 'Kept as 001-x.html' in post().text
    shutil.rmtree(tmp_path/'kept')
    (tmp_path/'kept').write_text('no folder')

    def assert_not_kept():
        response = post()
        assert response.status_code == 200
        for words in ('Not kept: ', 'x, ', 'Prediction</h2>'): assert words in response.text

    def full(*_, **__): raise OSError(28, 'No space left on device')

    assert_not_kept()
    (tmp_path/'kept').unlink()
    monkeypatch.setattr(page, 'write_prediction', full)
    assert_not_kept()


def test_exam_of_both_breasts_is_one_page(client, site, data, tmp_path):
    "Files in one field are sorted into breasts; each is kept, with one page for both."
    paths = sorted(data.root.rglob('P1_*_CM_*.jpg'))
    files = [('exam', (p.name, p.read_bytes())) for p in paths]
    response = send(client, site, files)
    assert response.status_code == 200, response.text
    for words in ('mine left, left breast: ', 'mine right, right breast: ', 'Exam mine',
                  'Left breast: Prediction', 'Right breast: Prediction'):
        assert words in response.text
    assert response.text.count('<img') == len(paths)
    keeping = site._replace(keep=tmp_path/'kept')
    again = send(TestClient(page.make_app(keeping), HOME), site, files)
    assert 'Kept as 001-mine_left.html' in again.text
    assert sorted(p.name for p in keeping.keep.iterdir()) == [
        '001-mine_left.html', '001-mine_left.json', '002-mine_right.json']
    unnamed = send(client, site, [('exam', ('a.jpg', paths[0].read_bytes()))])
    assert unnamed.status_code == 422 and 'does not state its' in unnamed.text
    other = ('exam', ('P2_L_CM_CC.jpg', paths[0].read_bytes())) # of another patient
    assert 'differ in PatientID' in send(client, site, [*files, other]).text


def test_models_that_need_regions_are_rejected_at_start(site, monkeypatch):
    expert = site.experts[0]
    preparation = expert.member.preparation
    tensors = preparation['tensors'] | dict(roi_source='annotation')
    member = expert.member._replace(preparation=preparation | dict(tensors=tensors))
    def calibrate(_): raise AssertionError('calibrated before the check')
    monkeypatch.setattr(predict, 'open_member', lambda *_: member)
    monkeypatch.setattr(predict, '_read_training', calibrate)
    with pytest.raises(ValueError, match='needs drawn regions, which the form lacks'):
        page.make_site(['x'], 1)
    with pytest.raises(SystemExit, match='cesm_app: .*nowhere is absent'):
        monkeypatch.undo()
        cesm_app(['--run', 'nowhere', '--port', '0'])


@pytest.fixture
def served(site):
    "Serve the page on a free port; return its address."
    with create_server(('127.0.0.1', 0)) as sock:
        port = sock.getsockname()[1]
        server = page.make_server(page.make_app(site._replace(hosts=(f'127.0.0.1:{port}',))))
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{port}/'
        server.should_exit = True
        thread.join(60)


class Browser:
    "Chromium through its DevTools protocol."
    def __init__(self, folder):
        command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
                   '--remote-debugging-port=0', f'--user-data-dir={folder}', 'about:blank']
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        log = self.process.stderr
        matches = (re.search(r'listening on ws://(127.0.0.1:\d+)', line) for line in log)
        address = next(m[1] for m in matches if m)
        threading.Thread(target=log.read, daemon=True).start() # a full pipe would stop the browser
        pages = json.load(urllib.request.urlopen(f'http://{address}/json/list', timeout=300))
        path = 'devtools/page/' + next(p['id'] for p in pages if p['type'] == 'page')
        self.ws = websocket.create_connection(f'ws://{address}/{path}', timeout=300,
                                              suppress_origin=True)
        self.count, self.events = itertools.count(1), []
        for domain in ('Page', 'DOM', 'Runtime', 'Log'): self(f'{domain}.enable')

    def __call__(self, method, **params):
        i = next(self.count)
        self.ws.send(json.dumps(dict(id=i, method=method, params=params)))
        for message in map(json.loads, iter(self.ws.recv, '')):
            if message.get('id') == i: return message['result']
            self.events.append(message)

    def wait(self, event, timeout=300):
        if any(m['method'] == event for m in self.events): return
        for message in map(json.loads, iter(self.ws.recv, '')):
            self.events.append(message)
            if message.get('method') == event: return

    def go(self, url):
        self.events.clear()
        self('Page.navigate', url=url)
        self.wait('Page.loadEventFired', timeout=300)

    def js(self, text):
        return self('Runtime.evaluate', expression=text, returnByValue=True)['result'].get('value')

    def key(self, key, code, text=''):
        self('Input.dispatchKeyEvent', type='keyDown', key=key, code=key,
             windowsVirtualKeyCode=code, text=text)
        self('Input.dispatchKeyEvent', type='keyUp', key=key, code=key, windowsVirtualKeyCode=code)

    def close(self):
        self.ws.close()
        self.process.kill()
        self.process.wait(60)


@pytest.mark.skipif(BROWSER is None,
                    reason='no Chromium on PATH: install it to test the page in a browser')
def test_keyboard_upload_in_a_browser(served, site, cases, tmp_path):
    "Case and error pages fit both screens too, whatever the name of a case or a file."
    fits = 'document.documentElement.scrollWidth <= innerWidth'
    focus = 'document.activeElement.name || document.activeElement.tagName'
    fields = ['exam', 'CM_CC', 'CM_MLO', 'side', 'age_years', 'density', 'name', 'window',
              'anyway', 'BUTTON']
    pages = [tmp_path/f'{k}.html' for k in ('case', 'rejected', 'error')]
    uploads, experts = {k: Upload(*v) for k, v in cases[0].items()}, site.experts*2
    exam = page.read_upload(dict(name='name-' + 'x'*55), uploads, page.list_images(experts))
    case = exam.breasts[0]
    prediction = predict_case(case, experts, anyway=True)
    pages[0].write_bytes(page_of(case, prediction, experts))
    rejected = prediction._replace(prob=prediction.prob*float('nan'), classes=[], calls={},
                                   called={}, ood_reasons=['unlike-' + 'y'*80])
    pages[1].write_bytes(page_of(case, rejected, experts))
    pages[2].write_bytes(page._explain(422, 'z'*200 + '.dcm is not used.').body)
    paths = {}
    for k, (name, content) in cases[0].items():
        (tmp_path/k).mkdir()
        (tmp_path/k/name).write_bytes(content)
        paths[k] = str(tmp_path/k/name)
    browser = Browser(tmp_path/'profile')
    try:
        for width in (1280, 390):
            browser('Emulation.setDeviceMetricsOverride', width=width, height=800,
                    deviceScaleFactor=1, mobile=width < 600)
            browser.go(served)
            root = browser('DOM.getDocument')['root']['nodeId']
            for k, path in paths.items(): # as if picked in the dialog of the field
                field = f'input[name={k}]'
                node = browser('DOM.querySelector', nodeId=root, selector=field)['nodeId']
                browser('DOM.setFileInputFiles', nodeId=node, files=[path])
            assert browser.js(fits)
            focused = []
            for _ in range(20):
                browser.key('Tab', 9)
                focused.append(browser.js(focus))
                if focused[-1] == 'name': browser('Input.insertText', text='typed')
                if focused[-1] == 'anyway': browser.key(' ', 32, ' ')
                if focused[-1] == 'BUTTON': break
            assert list(dict.fromkeys(focused)) == fields
            browser.events.clear()
            browser.key('Enter', 13, '\r')
            browser.wait('Page.loadEventFired', timeout=300)
            text = browser.js('document.body.innerText')
            assert 'typed' in text, text[:300]
            assert text.index('Research use only') < text.index('Prediction\n'), text[:300]
            assert browser.js(fits)
            assert browser.js('document.images[0].naturalWidth') > 300
            assert browser.js('getComputedStyle(document.body).maxWidth') == '1180px'
            logged = [m for m in browser.events if m['method'] == 'Log.entryAdded']
            assert not [m for m in logged if 'Security' in str(m)]
            for path in pages: # with names that have no blanks
                browser.go(path.as_uri())
                assert browser.js(fits), (width, path)
            shot = browser('Page.captureScreenshot', captureBeyondViewport=True)['data']
            (tmp_path/f'{width}.png').write_bytes(base64.b64decode(shot))
    finally: browser.close()
