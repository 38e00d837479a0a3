"""Damage a small phantom at random, run `cesm_check` and `cesm_tensorize`, and count the outcomes.

usage: python tools/dev/mutate.py [--n 500] [--seed 123] [--only 17]
Each mutation is one fault as it occurs in data: image bytes, sizes, orientation, grey levels, files
that are no files, names, regions, sheet cells. An outcome is `same` (all tensors unchanged),
`named` (a tensor differs, and the page of the check or problems.csv gives the reason), `refused`
(in one sentence), or bad: TRACEBACK, HANG (over 20 CPU seconds in one command) or WRONG (a tensor
differs without a message). The seed is printed; `--seed S --only I` repeats one mutation. Exits
with 1 if any outcome is bad.
"""
import argparse
import io
import json
import os
import random
import secrets
import signal
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from cesm_nb.cohort.quality import main as check
from cesm_nb.core.terms import FOLDERS, REGIONS_NAME, SHEET_COLUMNS, SHEET_NAME, SIZES_NAME
from cesm_nb.core.errors import one_way_out
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import main as tensorize
from cesm_nb.tensorize import read_tensor

CPU_S, WALL_S = 20, 300 # of one command: longest computation, and wait after which it hangs
BAD = ('TRACEBACK', 'HANG', 'WRONG')
SHEET = SHEET_NAME.replace('.xlsx', '.csv')


def make_base(
    folder:Path, # scratch
) -> dict: # name -> bytes
    "A phantom of subtracted images with its sheet as CSV."
    root = make_phantom(folder, n_patients=6, size_px=72, progress=False)
    files = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob('*') if f.is_file()}
    book = io.BytesIO(files.pop(SHEET_NAME))
    sheet = pd.read_excel(book, sheet_name='all', dtype=str, keep_default_na=False)
    files = {k: v for k, v in files.items() if not k.startswith(FOLDERS['DM'])}
    files[SHEET] = to_csv(sheet[sheet.Type == 'CESM'])
    return files | {REGIONS_NAME: to_csv(cm_regions(files))}


def to_csv(table): return table.to_csv(index=False).encode()


def cm_regions(files):
    "The regions of subtracted images."
    via = pd.read_csv(io.BytesIO(files[REGIONS_NAME]), dtype=str)
    return via[via['#filename'].str.contains('_CM_')].reset_index(drop=True)


def images_of(files): return sorted(f for f in files if f.startswith(FOLDERS['CM']))


def pixels(data): return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def png(image): return cv2.imencode('.png', image)[1].tobytes()


def saved(image, kind='PNG', **more):
    image.save(buffer := io.BytesIO(), kind, **more)
    return buffer.getvalue()


def damage_bytes(files, rng):
    name = rng.choice(images_of(files))
    b = bytearray(files[name])
    how = rng.choice(['cut', 'zeroed', 'empty', 'text', 'PNG bit', 'tail'])
    at = rng.randrange(len(b))
    if how == 'cut': b = b[:at]
    elif how == 'zeroed': b[at:at+200] = bytes(len(b[at:at+200]))
    elif how == 'PNG bit': # has checksums, JPEG has none
        b = bytearray(png(pixels(files[name])))
        b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    else: b = dict(empty=b'', text=b'<html>not found</html>', tail=b + b'\0'*99)[how]
    return how, files | {name: bytes(b)}


def change_size(files, rng):
    name = rng.choice(images_of(files))
    sizes = (1, 1), (8, 8), (1, 20_000), (20_000, 1), (30, 390), (7000, 600), (23, 200), (200, 12)
    h, w = rng.choice(sizes)
    image = cv2.resize(pixels(files[name]), (w, h), interpolation=cv2.INTER_AREA)
    return f'{w} x {h}', files | {name: png(image)}


def turn(files, rng):
    name, tag = rng.choice(images_of(files)), rng.randrange(0, 10)
    image, exif = Image.fromarray(pixels(files[name])), Image.Exif()
    exif[0x0112] = tag
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(tag)
    right = rng.random() < .5 and stored is not None
    data = saved(image.transpose(stored) if right else image, exif=exif)
    if rng.random() < .2: data = data.replace(b'II*\0', rng.randbytes(4))
    return f'EXIF {tag}, {"stored so" if right else "tag alone"}', files | {name: data}


def change_grey(files, rng):
    name = rng.choice(images_of(files))
    g = pixels(files[name])
    deep, full, hole = g.astype(np.uint16), np.full_like(g, 255), np.full_like(g, 9)
    kinds = {
        'three channels': lambda: png(cv2.merge([g]*3)),
        'off by one': lambda: png(cv2.merge([g, cv2.add(g, 1), g])),
        'alpha 255': lambda: png(cv2.merge([g, g, g, full])),
        'transparent': lambda: png(cv2.merge([g, g, g, hole])), '8 in 16': lambda: png(deep),
        '8 in 16, shifted': lambda: png(deep << 8), '8 in 16, full': lambda: png(deep*257),
        '16 bits': lambda: png(deep*200 + 1), 'colour': lambda: png(cv2.merge([g, g // 2, g])),
        'CMYK': lambda: saved(Image.fromarray(g).convert('CMYK'), 'JPEG'),
        'TIFF': lambda: saved(Image.fromarray(g), 'TIFF'),
        'float TIFF': lambda: saved(Image.fromarray(g.astype(np.float32)), 'TIFF'),
        'one bit': lambda: png((g > 60)*np.uint8(2)),
        'palette': lambda: saved(Image.fromarray(g).convert('P')), 'negative': lambda: png(255 - g),
        'black': lambda: png(g*0), 'white': lambda: png(full), 'dull': lambda: png(g // 100 + 100)}
    how = rng.choice(list(kinds))
    return how, files | {name: kinds[how]()}


def replace_file(files, rng):
    name = rng.choice(images_of(files))
    makers = {'folder': os.mkdir, 'pipe': os.mkfifo, 'link to itself': lambda p: os.symlink(p, p),
              'link to /dev/zero': lambda p: os.symlink('/dev/zero', p)}
    how = rng.choice(
        ['absent', 'folder', 'pipe', 'link to /dev/zero', 'link to itself', 'copy of another'])
    other = rng.choice([f for f in images_of(files) if f != name])
    files = {k: v for k, v in files.items() if k != name}
    return how, files if how == 'absent' else files | {name: makers.get(how) or files[other]}


def rename(files, rng):
    name = rng.choice(images_of(files))
    path = Path(name)
    odd = rng.choice([
        f'{path.stem}.JPG', f'{path.stem.lower()}.jpg', f'{path.stem} .jpg', f' {path.name}',
        f'{path.name}.jpg', f'sub/{path.name}', f'{path.stem}_224.jpg', f'{path.stem}.jpeg',
        f'\u202e{path.name}', f'{path.stem}\n.jpg'])
    files = dict(files)
    data = files.pop(name)
    return repr(odd), files | {str(path.parent/odd): data}


def damage_region(files, rng):
    via = cm_regions(files)
    row = rng.randrange(len(via))
    text = via.loc[row, 'region_shape_attributes']
    n = rng.choice([7000, 200_000]) # more than are kept
    t = np.linspace(0, 6.28, n)
    polygon = lambda x, y: json.dumps(dict(name='polygon', all_points_x=x, all_points_y=y))
    ring = polygon((20 + 9*np.cos(t)).tolist(), (30 + 9*np.sin(t)).tolist())
    scribble = polygon(*([rng.randrange(k) for _ in range(5000)] for k in (40, 60)))
    kinds = {
        'cut': text[:rng.randrange(1, len(text))], 'no colons': text.replace(':', ''),
        'huge': json.dumps(dict.fromkeys(json.loads(text), 1e300)), 'formula': '=1+1',
        f'{n} points': ring, 'scribble': scribble, 'list': '[1, 2]', 'deep': '['*9999,
        'nan': text.replace(':', ':NaN,"x":', 1), 'star': '{"name":"star","cx":1}', 'null': 'null'}
    how = rng.choice(list(kinds))
    if rng.random() < .25:
        how, column, value = 'name', '#filename', rng.choice(['P9_L_CM_CC.jpg', 'C:\\x\\y.jpg', ''])
    else: column, value = 'region_shape_attributes', kinds[how]
    via.loc[row, column] = value
    return how, files | {REGIONS_NAME: to_csv(via)}


def damage_sheet(files, rng):
    sheet = pd.read_csv(io.BytesIO(files[SHEET]), dtype=str, keep_default_na=False)
    how = rng.choice(['cell', 'cell', 'cell', 'row twice', 'row lost', 'cut', 'no column', 'sizes'])
    row, column = rng.randrange(len(sheet)), rng.choice(SHEET_COLUMNS)
    if how == 'sizes':
        sizes = pd.DataFrame({'filename': sheet.Image_name + '.jpg', 'width': '=A1', 'height': '0'})
        return how, files | {SIZES_NAME: to_csv(sizes)}
    if how == 'cut':
        data = files[SHEET]
        return how, files | {SHEET: data[:rng.randrange(len(data))]}
    if how == 'cell':
        odd = ['text', '1e308', '9'*400, '=1+1', '-1', '=HYPERLINK("x")', '\0', '../x']
        sheet.loc[row, column] = rng.choice(odd)
    elif how == 'row twice': sheet = pd.concat([sheet, sheet.iloc[[row]]])
    elif how == 'row lost': sheet = sheet.drop(index=row)
    else: sheet = sheet.drop(columns=column)
    if how in ('cell', 'no column'): how = f'{how} {column}'
    return how, files | {SHEET: to_csv(sheet)}


MUTATIONS = (
    damage_bytes, change_size, turn, change_grey, replace_file, rename, damage_region, damage_sheet)


class Hang(BaseException): pass


@contextmanager
def bounded():
    "Raise `Hang` after `CPU_S` of processor time, or `WALL_S` of waiting."
    def stop(*_): raise Hang
    before = [(s, signal.signal(s, stop)) for s in (signal.SIGPROF, signal.SIGALRM)]
    timers = (signal.ITIMER_PROF, CPU_S), (signal.ITIMER_REAL, WALL_S)
    for t, s in timers: signal.setitimer(t, s)
    try: yield
    finally:
        for t, _ in timers: signal.setitimer(t, 0)
        for s, old in before: signal.signal(s, old)


def attempt(command):
    "Run one command as its user would; return '' if it works, or what ended it."
    out, err = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    try:
        with bounded(), out, err, one_way_out('cesm_x'): command()
    except SystemExit as e:
        foreseen = isinstance(e.code, str) and '\n' not in e.code and 'unforeseen' not in e.code
        return f'refused: {e}' if foreseen else f'TRACEBACK: {e!r}'
    except Hang: return 'HANG'
    except Exception as e: return f'TRACEBACK: {e!r}'
    return ''


def observe(
    files:dict, # name -> bytes, or a function that makes the file
    root:Path, # scratch
    protocol:str, # 'paper' or 'clinical'
) -> tuple: # (ends of check and tensorize, breast -> tensor, breast -> problems, rows of the check)
    "Write a data set, run both commands and read their files."
    data = root/'data'
    for name, content in files.items():
        path = data/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content): content(path)
        else: path.write_bytes(content)
    cfg = TensorConfig(
        data_root=str(data), run_dir=str(root), image_size=16, n_jobs=1, protocol=protocol)
    ends = attempt(lambda: check(data, root/'check')), attempt(lambda: tensorize(cfg))
    paths = [root/k/'problems.csv' for k in ('check', 'tensors')]
    read = lambda p: pd.read_csv(p, keep_default_na=False) if p.exists() else pd.DataFrame()
    checked, problems = map(read, paths)
    tensors = {f.stem: read_tensor(f) for f in (root/'tensors').glob('*.pt')}
    sides = dict(L='Left', R='Right')
    named = {f'P{o.patient_id}_{sides[o.side]}': o.problems for o in problems.itertuples()}
    return ends, tensors, named, set(checked.itertuples(index=False, name=None))


def name_outcome(got, whole, still=()):
    "Outcome of a mutation, with the evidence; `still`: kinds of problems that count if not new."
    (ends, tensors, named, rows), (_, before, _, old) = got, whole
    for end in ends:
        if end.startswith(BAD): return end.split(':')[0], end
    if ends[1]: return 'refused', ends[1]
    counted = rows - old | {r for r in rows if any(w in r[0] for w in still)}
    reported = ['*' if 'not in the sheet' in kind else str(name) for kind, name, *_ in counted]

    def differs(b):
        if b not in tensors or tensors[b]['label'] != before[b]['label']: return True
        return any((tensors[b][k] != before[b][k]).any() for k in ('x', 'real'))

    def is_reported(b):
        start = f'{b[:b.index("_") + 2]}_' # such as P12_L_
        return b in named or '*' in reported or any(r.startswith(start) for r in reported)

    silent = [b for b in before if differs(b) and not is_reported(b)]
    if silent: return 'WRONG', f'{silent} differ without a message'
    return ('named' if named or rows - old else 'same'), ''


def mutate(
    n:int, # mutations
    seed:int, # the same mutations again
    only:int=-1, # run this one alone; -1: all
) -> pd.DataFrame: # fault, how, protocol, outcome, detail; one row per mutation
    "Damage, run and rate the outcomes."
    rows = []
    with tempfile.TemporaryDirectory(prefix='cesm_mutate_') as d:
        base = make_base(Path(d)/'phantom')
        whole = {p: observe(base, Path(d)/p, p) for p in ('paper', 'clinical')}
        for i in range(n) if only < 0 else [only]:
            rng = random.Random(f'{seed}-{i}')
            fault, protocol = MUTATIONS[i % len(MUTATIONS)], rng.choice(list(whole))
            how, files = fault(base, rng)
            # a scribble may replace an outline that crosses itself, which was reported already
            still = ('used as drawn',) if how == 'scribble' else ()
            with tempfile.TemporaryDirectory(dir=d) as scratch:
                got = observe(files, Path(scratch), protocol)
            outcome, detail = name_outcome(got, whole[protocol], still)
            name = fault.__name__.replace('_', ' ')
            rows.append(dict(i=i, fault=name, how=how, protocol=protocol, outcome=outcome,
                             detail=detail))
            if outcome in BAD: print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def read_options(doc, n): # text of a tool; default number of mutations
    "Options `n`, `seed` (printed) and `only` of a tool that mutates."
    ap = argparse.ArgumentParser(description=doc.splitlines()[0])
    ap.add_argument('--n', type=int, default=n, help='mutations')
    ap.add_argument('--seed', type=int, help='default: a fresh one')
    ap.add_argument('--only', type=int, default=-1, help='run this mutation of the seed alone')
    o = ap.parse_args()
    if o.seed is None: o.seed = secrets.randbelow(10**6)
    print(f'seed {o.seed}', flush=True)
    return o


def report(table, by, what, o): # from `mutate`; its column; what was mutated; from `read_options`
    "Print the outcomes; exit with status 1 if one is bad."
    print(pd.crosstab(table[by], table.outcome, margins=True, margins_name='all').to_string())
    if o.only >= 0: print(table.iloc[0].to_dict())
    bad = table.outcome.isin(BAD).sum()
    print(f'{len(table)} mutations of {what} with seed {o.seed}: {bad} bad')
    sys.exit(int(bad > 0))


def main():
    "Print the outcomes of all faults."
    o = read_options(__doc__, 500)
    report(mutate(o.n, o.seed, o.only), 'fault', 'a PHANTOM', o)


if __name__ == '__main__': main()
