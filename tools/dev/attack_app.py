"""Send bad requests to `cesm_app`, in parallel with good ones, and count the outcomes by kind.

usage: python tools/dev/attack_app.py [--n 200] [--seed 123] [--uploads 100]
The page is served by its command, with a model of a small phantom. Requests are good,
too large, broken off, stalled in headers or body, of another host, site or start, or garbage. An
outcome is `page` (the prediction, equal to that sent alone), a status with a sentence, `closed`, or
bad: WRONG (another page), TRACEBACK (in a response or in the terminal), NO SENTENCE, HANG (no
response for 600 s). Then good uploads follow, and the memory must not grow by more than 100 MB.
Requests queue on a busy machine, so seconds are not judged; stalled ones end after 10 s of silence.
"""
import argparse
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from cesm_nb.core.settings import make_config
from cesm_nb.data import breasts, read_dataset
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.train import fit

PATIENCE_S, LIMIT_MB = 600, 100
BAD = ('WRONG', 'TRACEBACK', 'NO SENTENCE', 'HANG')
START = 'import sys; from cesm_nb.cli import cesm_app; cesm_app(sys.argv[1:])'
KINDS = ('good', 'token', 'host', 'origin', 'large', 'large, in pieces', 'broken off',
         'stalled body', 'half headers', 'garbage', 'no form', 'field twice', 'no image', 'odd age',
         'path', 'method', 'odd length', 'binary')
AGES = 'nan', 'inf', '-1', 'x', '46,5', '1e999'
PATHS = '/x', '/../etc/passwd', '/ask/', '/%00', '/ask%00'
LENGTHS = '-1', 'x', '1, 1', '²', '9'*30


def make_model(folder):
    "A run of a small phantom, the images of a breast (field -> bytes), and its side."
    root = make_phantom(folder/'data', 24, size_px=80, progress=False)
    run = fit(make_config(dict(
        data_root=str(root), run_dir=str(folder/'run'), protocol='clinical', image_size=32,
        epochs=1, batch_size=16, backbones='lcnet_035', device='cpu', mixed_precision='no')))
    b = breasts(read_dataset(root).images).query('n_views == 2').iloc[0]
    images = dict(CM_CC=Path(b.cc_path).read_bytes(), CM_MLO=Path(b.mlo_path).read_bytes())
    return run.run_dir, images, b.side


class Page:
    "`cesm_app` in a process of its own: `port`, `token`, and the `log` of its terminal."
    def __init__(self, run, side, log):
        self.side, self.log = side, log
        command = [sys.executable, '-c', START, '--run', str(run), '--port', '0']
        with open(log, 'w') as f:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=f, text=True,
                                            env=os.environ | dict(TQDM_DISABLE='1'))
        lines = (re.search(r'http://127.0.0.1:(\d+)', line) for line in self.process.stdout)
        self.port = int(next(m for m in lines if m)[1])
        head = f'GET / HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n'
        self.token = re.search(r'name="token" value="(.*?)"', self.send(head.encode()))[1]

    def send(self, *pieces):
        "Send bytes, then read until the page closes the connection: the response, '' if none."
        with socket.create_connection(('127.0.0.1', self.port), PATIENCE_S) as s:
            try:
                for p in pieces: s.sendall(p)
            except OSError: pass # a response may come before all is sent
            out = []
            try:
                while piece := s.recv(2**16): out.append(piece)
            except ConnectionError: pass
        return b''.join(out).decode(errors='replace')

    def memory_mb(self): return psutil.Process(self.process.pid).memory_info().rss/2**20

    def close(self):
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


def make_body(fields, images):
    "A form as browsers send it, with the boundary x."
    line = '--x\r\nContent-Disposition: form-data; name='
    parts = [f'{line}"{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields]
    parts += [f'{line}"{k}"; filename="a.jpg"\r\n\r\n'.encode() + v + b'\r\n' for k, v in images]
    return b''.join(parts) + b'--x--\r\n'


def make_head(page, body, **changes):
    "The head of a request with a form; a change to None leaves a line out."
    host = f'127.0.0.1:{page.port}'
    lines = {'host': host, 'origin': f'http://{host}', 'connection': 'close',
             'content-type': 'multipart/form-data; boundary=x', 'content-length': len(body)}
    lines |= {k.replace('_', '-'): v for k, v in changes.items() if k not in ('method', 'path')}
    first = f'{changes.get("method", "POST")} {changes.get("path", "/ask")} HTTP/1.1'
    rest = [f'{k}: {v}' for k, v in lines.items() if v is not None]
    return '\r\n'.join([first, *rest, '', '']).encode()


def send_kind(page, kind, images, rng):
    "Send a request of one kind; return the response."
    fields = dict(token=page.token, name='a', anyway='1', side=page.side)
    if kind == 'token': fields['token'] = rng.choice(['', 'x', fields['token'][:-1]])
    if kind == 'odd age': fields['age_years'] = rng.choice(AGES)
    own = {} if kind == 'no image' else images
    if kind == 'binary': own = dict(CM_CC=rng.randbytes(rng.choice([1, 200, 10**6])))
    twice = kind == 'field twice'
    body = make_body([*fields.items()]*(1 + twice), own.items())
    head, at = make_head(page, body), rng.randrange(1, len(body))
    change = {
        'host': dict(host='evil.example'), 'origin': dict(origin='http://evil.example'),
        'path': dict(path=rng.choice(PATHS)), 'method': dict(method=rng.choice(['PUT', 'X'])),
        'large': dict(content_length=10**9), 'odd length': dict(content_length=rng.choice(LENGTHS)),
        'no form': dict(content_type=rng.choice([None, 'text/plain', 'multipart/form-data']))}
    if kind in change: return page.send(make_head(page, body, **change[kind]), body)
    if kind == 'large, in pieces':
        head = make_head(page, b'', content_length=None, transfer_encoding='chunked')
        piece = make_body([*fields.items()], {})[:-7] + \
            b'--x\r\nContent-Disposition: form-data; name="CM_CC"; filename="a"\r\n\r\n'
        chunks = [piece, *[bytes(2**22)]*70] # 280 MB
        return page.send(head, *(f'{len(c):x}\r\n'.encode() + c + b'\r\n' for c in chunks))
    if kind == 'broken off':
        with socket.create_connection(('127.0.0.1', page.port), PATIENCE_S) as s:
            s.sendall((head + body)[:rng.randrange(1, len(head + body))])
        return ''
    if kind == 'stalled body': return page.send(head, body[:at])
    if kind == 'half headers': return page.send(head[:rng.randrange(1, len(head) - 4)])
    if kind == 'garbage': return page.send(rng.randbytes(rng.choice([3, 500, 70_000])))
    return page.send(head, body)


def numbers(response):
    "The prediction on a page, without names and numbers of the case."
    return re.findall(r'<h2>Prediction.*?</table>', response, re.S)


def name_outcome(page, kind, images, rng, good):
    "Send a request of one kind and name its outcome."
    try: response = send_kind(page, kind, images, rng)
    except TimeoutError: return 'HANG'
    status = response[9:12]
    if 'Traceback' in response: return 'TRACEBACK'
    if kind == 'good': return 'page' if numbers(response) == good != [] else f'WRONG {status}'
    if numbers(response): return 'WRONG'
    if kind in ('broken off', 'half headers', 'garbage') and not response: return 'closed'
    spoken = 'role="alert"' in response or 'Invalid HTTP request' in response
    return f'status {status}' if spoken else f'NO SENTENCE {status}'


def attack(page, images, n, seed, n_threads=8):
    "Send n requests in parallel: kind -> counts of outcomes; unexpected lines of the terminal."
    rng = random.Random(seed)
    kinds = [rng.choice(KINDS) for _ in range(n)]
    good = numbers(send_kind(page, 'good', images, rng))
    send = lambda i: name_outcome(page, kinds[i], images, random.Random(f'{seed}-{i}'), good)
    with ThreadPoolExecutor(n_threads) as pool: outcomes = [*pool.map(send, range(n))]
    counts = {k: Counter(o for o, own in zip(outcomes, kinds) if own == k) for k in KINDS}
    last = name_outcome(page, 'good', images, rng, good)
    if last != 'page': counts['good'][f'WRONG after all: {last}'] += 1
    lines = Path(page.log).read_text().splitlines()
    return counts, [line for line in lines if line.strip() and 'Invalid HTTP' not in line]


def main():
    "Print the outcomes of all kinds, and the memory before and after."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--n', type=int, default=200, help='requests')
    ap.add_argument('--seed', type=int, help='default: a fresh one')
    ap.add_argument('--uploads', type=int, default=100, help='good ones, for the memory')
    o = ap.parse_args()
    seed = secrets.randbelow(10**6) if o.seed is None else o.seed
    print(f'seed {seed}', flush=True)
    with tempfile.TemporaryDirectory(prefix='cesm_attack_') as d:
        run, images, side = make_model(Path(d))
        page = Page(run, side, Path(d)/'log')
        try:
            counts, log = attack(page, images, o.n, seed)
            before, rng = page.memory_mb(), random.Random(seed)
            for _ in range(o.uploads): send_kind(page, 'good', images, rng)
            after = page.memory_mb()
        finally: page.close()
    for k, c in counts.items(): print(f'{k}: ' + ', '.join(f'{w} {v}' for w, v in c.items()))
    bad = sum(v for c in counts.values() for w, v in c.items() if w.startswith(BAD)) + len(log)
    print(*log, f'{o.n} requests with seed {seed}: {bad} bad; {o.uploads} uploads: '
          f'{before:.0f} MB before, {after:.0f} MB after', sep='\n')
    sys.exit(int(bad > 0 or after - before > LIMIT_MB))


if __name__ == '__main__': main()
