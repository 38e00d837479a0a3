"""Alter files in run and tensor folders of a small phantom, read them, and count the outcomes.

usage: python tools/dev/attack.py [--n 300] [--seed 1]
Each attack alters one file of a copy: rows, values, keys, bytes, or a file of another run. Then the
run is read with the functions that the commands use. `TRACEBACK`, `HANG` and `WRONG` (another
result without a message) must stay at zero.
"""
import argparse
import json
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cesm_nb.cases.prepare import open_member
from cesm_nb.core.errors import is_refusal
from cesm_nb.training.inference import predict_run
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.core.runs import Run, read_parts
from cesm_nb.core.settings import make_config
from cesm_nb.tensorize import read_manifest
from cesm_nb.train import fit

TABLES = ('predictions.csv', 'history.csv', 'splits.csv', 'manifest.csv')
CPU_S = 20 # seconds of processor time after which a reader counts as hanging


class Hang(BaseException): "A reader that does not end."


def make_runs(folder):
    "Two runs of one phantom with the same settings but for the seed."
    root = make_phantom(folder/'data', 24, size_px=80, progress=False)
    for name, seed in (('a', 0), ('b', 1)):
        fit(make_config(dict(
            data_root=str(root), run_dir=str(folder/name), image_size=32, epochs=1, batch_size=16,
            backbones='lcnet_035', device='cpu', mixed_precision='no', seed=seed, n_jobs=1)))
    return folder/'a', folder/'b'


def alter_table(path, rng):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    how = rng.choice(['drop', 'double', 'rotate', 'value', 'column', 'empty'])
    column = rng.choice(list(table))
    if how == 'drop': table = table.drop(rng.randrange(len(table)))
    if how == 'double': table = pd.concat([table, table.iloc[[rng.randrange(len(table))]]])
    if how == 'rotate': table[column] = [*table[column][1:], table[column][0]]
    if how == 'value':
        value = rng.choice(['', 'nan', '-1', 'tset', '1e30', '../x'])
        table.loc[rng.randrange(len(table)), column] = value
    if how == 'column': table = table.drop(columns=column)
    if how == 'empty': table = table[:0]
    table.to_csv(path, index=False)
    return f'{how} {column}'


def alter_json(path, rng):
    content = json.loads(path.read_text())
    at = rng.choice([d for d in (content, content.get('settings')) if d])
    key, value = rng.choice(list(at)), rng.choice([None, 'x', -1, 1e30, float('nan'), [], {}, True])
    if rng.random() < .3: at.pop(key)
    else: at[key] = value
    path.write_text(json.dumps(content))
    return f'{key} -> {value!r}'


def alter_tensor(path, rng):
    d = torch.load(path, weights_only=True)
    how = rng.choice(['mirror', 'half', 'key', 'label', 'text'])
    if how == 'mirror': d['x'] = d['x'].flip(-1)
    if how == 'half': d['x'] = d['x'].half()
    if how == 'key': d.pop(rng.choice(list(d)))
    if how == 'label': d['label'] = rng.choice([7, -1, 'x', None, (d['label'] + 1) % 3])
    if how == 'text': d[rng.choice(list(d))] = 'text'
    torch.save(d, path)
    return how


def alter_weights(path, rng):
    weights = load_file(path)
    key = rng.choice(list(weights))
    kinds = [lambda w: w.to(torch.int8), lambda w: w*2, lambda w: w[None].contiguous()]
    weights[key] = rng.choice(kinds)(weights[key])
    save_file(weights, path)
    return key


def attack(run, other, rng):
    "Alter one file of `run`; return which and how."
    tensor = rng.choice(sorted((run/'tensors').glob('*.pt')))
    names = (*TABLES, 'config.json', 'status.json', 'checkpoints/best.safetensors',
             tensor.relative_to(run), 'tensors/settings.json', 'tensors/manifest.csv')
    path = run/rng.choice(names)
    how = rng.choice(['alter', 'alter', 'alter', 'swap', 'cut', 'delete'])
    if how == 'swap': shutil.copy(other/path.relative_to(run), path)
    if how == 'cut': path.write_bytes(path.read_bytes()[:rng.randrange(path.stat().st_size)])
    if how == 'delete': path.unlink()
    alter = {'.csv': alter_table, '.json': alter_json, '.pt': alter_tensor,
             '.safetensors': alter_weights}[path.suffix]
    return f'{path.relative_to(run)}: {how} {alter(path, rng) if how == "alter" else ""}'


def read(run):
    "Read a run with all `READERS`, even if one rejects it: (tables of each, last rejection)."
    out, rejection = [], None
    for reader in READERS:
        try: out.append([pd.json_normalize(r) if isinstance(r, dict) else r for r in reader(run)])
        except Exception as e:
            if not is_refusal(e): raise
            out.append([])
            rejection = e
    return out, rejection


def read_tensors(run):
    "Read the list of a tensor folder; it is made anew before each use, so it may differ."
    read_manifest(run/'tensors')
    return []


READERS = ( # what evaluate, grid and predict read of a run
    lambda run: Run.open(run)[1:], lambda run: [predict_run(run, device='cpu')],
    lambda run: [read_parts(run)], lambda run: [read_manifest(run)],
    lambda run: [open_member(run).preparation], read_tensors)


def name_outcome(run, before):
    "Read an altered run: the outcome, and its message."
    def hang(*_): raise Hang
    old = signal.signal(signal.SIGVTALRM, hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    try:
        results, rejection = read(run)
        for tables, kept in zip(results, before): # no table where the reader rejects
            for now, was in zip(tables, kept):
                pd.testing.assert_frame_equal(now, was, rtol=1e-5, check_dtype=False)
        return ('refused', str(rejection)) if rejection else ('same', '')
    except Hang: return 'HANG', ''
    except AssertionError as e: return 'WRONG', str(e).splitlines()[0]
    except Exception as e:
        return ('refused' if is_refusal(e) else 'TRACEBACK'), f'{type(e).__name__}: {e}'
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


def run_attacks(folder, n, seed):
    "Count the outcomes, and list the bad ones."
    os.environ['TQDM_DISABLE'] = '1'
    torch.set_num_threads(1)
    one, other = make_runs(folder)
    shutil.move(one, folder/'kept')
    shutil.copytree(folder/'kept', one)
    (before, rejection), counts, bad = read(one), Counter(), []
    assert rejection is None, rejection
    for i in range(n):
        shutil.rmtree(one)
        shutil.copytree(folder/'kept', one, ignore=shutil.ignore_patterns('last'))
        what = attack(one, other, random.Random(f'{seed} {i}'))
        outcome, message = name_outcome(one, before)
        counts[outcome] += 1
        if outcome.isupper(): bad.append(f'{outcome}: attack {i} of seed {seed}, {what}: {message}')
    return counts, bad


def main():
    "Print the bad outcomes and the counts."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--n', type=int, default=300)
    ap.add_argument('--seed', type=int, default=random.randrange(10**6),
                    help='default: a fresh one')
    o = ap.parse_args()
    print(f'seed {o.seed}', flush=True)
    with tempfile.TemporaryDirectory() as d: counts, bad = run_attacks(Path(d), o.n, o.seed)
    outcomes = 'refused', 'same', 'TRACEBACK', 'HANG', 'WRONG'
    print(*bad, ', '.join(f'{k} {counts[k]}' for k in outcomes), sep='\n')
    raise SystemExit(1 if bad else 0)


if __name__ == '__main__': main()
