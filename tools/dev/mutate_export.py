"""Damage exported models and bundles at random, predict a case with each, and count the outcomes.

usage: python tools/dev/mutate_export.py [--n 300] [--seed 123] [--only 17]
A model of a small phantom is exported whole, without its backbone, and as one file. Each mutation
damages one of its files, or the file of the bundle: keys lost or added, values of a wrong type or
not finite, bytes cut or flipped, a file of another model. Every third one of JSON also removes the
digests, as in files of older versions or edited by hand. An outcome is `same`, `refused` (in one
sentence), `named` (no `training.json`, which the prediction mentions), or bad: TRACEBACK, HANG or
WRONG (another prediction without a message). The seed is printed; `--only I` repeats one mutation.
"""
import io
import json
import random
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import timm
import torch
from safetensors.torch import load, save, save_file

from cesm_nb.cases.fitted import save_bundle
from cesm_nb.cases.predict import export_expert, describe_expert, open_experts, predict_case, to_row
from cesm_nb.cases.prepare import open_member
from cesm_nb.cases.released import export_released
from cesm_nb.core.settings import make_config
from cesm_nb.data import breasts, read_dataset
from cesm_nb.imaging.dicom import read_case
from cesm_nb.synthetic.phantom import make_phantom
from cesm_nb.train import fit
from mutate import BAD, attempt, read_options, report

VALUES = None, 'x', -1, 1e30, float('nan'), float('inf'), [], {}, True # of any key
NO_NUMBERS = None, 'x', float('nan'), float('inf'), [], {}
UNKNOWN = 'nothing is known about the training'
TINY = dict(protocol='clinical', image_size=32, epochs=1, batch_size=16, device='cpu',
            mixed_precision='no', n_jobs=1)
KINDS = dict(whole=dict(backbones='lcnet_035'), fitted=dict(
    model='probe', backbones='test_efficientnet', pretrained=True, fit_on='train'))


def make_models(folder):
    "Exports of two models of each kind, a case, and the folder with the weights of backbones."
    root = make_phantom(folder/'data', 24, size_px=80, progress=False)
    (weights := folder/'weights').mkdir()
    torch.manual_seed(0)
    net = timm.create_model('test_efficientnet')
    save_file(net.state_dict(), weights/'test_efficientnet.safetensors')
    models = {}
    for kind, settings in KINDS.items():
        for seed in (0, 1):
            run = folder/f'{kind}{seed}'
            fit(make_config(TINY | settings | dict(
                data_root=str(root), run_dir=str(run), seed=seed, weights_dir=str(weights),
                tensor_dir=str(folder/'tensors'))))
            out = folder/f'export_{kind}{seed}'
            if kind == 'whole': export_expert(run, out)
            else: export_released(run, describe_expert(open_member(run)), out)
            models[kind, seed] = out
            models[f'{kind} bundle', seed] = folder/f'{kind}{seed}.bundle'
            save_bundle(out, models[f'{kind} bundle', seed], str(weights))
    b = breasts(read_dataset(root).images).query('n_views == 2').iloc[0]
    case = read_case([b.cc_path, b.mlo_path], 'a', age_years=50., density='B')
    return models, case, weights


def read_files(path):
    "Content of an exported folder or of a bundle: name -> bytes."
    if path.is_dir(): return {f.name: f.read_bytes() for f in sorted(path.iterdir())}
    with ZipFile(path) as z: return {k: z.read(k) for k in z.namelist()}


def places(content, at=()):
    "Paths to all values of JSON; of long lists, to the first three."
    if not isinstance(content, (dict, list)): return
    keys = list(content) if isinstance(content, dict) else range(min(3, len(content)))
    for k in keys:
        yield (*at, k)
        yield from places(content[k], (*at, k))


def damage_json(data, rng):
    content, unsealed = json.loads(data), rng.random() < 1/3
    if unsealed:
        for k in ('digest', 'files'): content.pop(k, None)
    *path, key = rng.choice([*places(content)])
    inner = content
    for k in path: inner = inner[k]
    how = rng.choice(['lost', 'value', 'value', 'extra'])
    if how == 'lost': del inner[key]
    elif how == 'extra': content['extra'] = 1
    else:
        old = inner[key]
        new = [v for v in (NO_NUMBERS if unsealed else VALUES) if type(v) is not type(old) or
               isinstance(v, float)]
        inner[key] = rng.choice(new)
        how = repr(inner[key])
    name = '.'.join(map(str, (*path, key)))
    return f'{"unsealed " if unsealed else ""}{name}: {how}', json.dumps(content).encode()


def damage_weights(data, rng):
    state = load(data)
    key, how = rng.choice(list(state)), rng.choice(['lost', 'nan', 'inf', 'twice', 'half', 'shape'])
    old = state.pop(key)
    if how in ('nan', 'inf'): state[key] = torch.full_like(old, float(how)) \
        if old.is_floating_point() else old + 1
    elif how == 'twice': state[key] = old*2 + 1
    elif how == 'half': state[key] = old.half()
    elif how == 'shape': state[key] = old[None].contiguous()
    if rng.random() < .2: state['extra'] = torch.zeros(1)
    return f'{key}: {how}', save(state)


def damage_bytes(data, rng):
    how = rng.choice(['cut', 'flip', 'empty', 'web page', 'pointer', 'tail'])
    if how == 'cut': return how, data[:rng.randrange(len(data))]
    if how == 'tail': return how, data + rng.randbytes(9)
    if how == 'flip':
        data = bytearray(data)
        for _ in range(3): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return how, bytes(data)
    other = b'version https://git-lfs.github.com/spec/v1\noid sha256:0'
    return how, {'empty': b'', 'web page': b'<!DOCTYPE html><html>', 'pointer': other}[how]


def damage(files, other, rng):
    "Damage one file of a model: how, and name -> bytes."
    name = rng.choice([f for f in files if f != 'README.md' or rng.random() < .2])
    by_suffix = {'.json': damage_json, '.safetensors': damage_weights}
    own = by_suffix.get(Path(name).suffix, damage_bytes)
    how = rng.choice(['own', 'own', 'own', 'bytes', 'absent', 'swap'])
    if how == 'absent': return f'{name}: absent', {k: v for k, v in files.items() if k != name}
    if how == 'swap': return f'{name}: of another model', files | {name: other[name]}
    if how == 'own': how, data = own(files[name], rng)
    else: how, data = damage_bytes(files[name], rng)
    return f'{name}: {how}', files | {name: data}


def write_model(files, folder, bundle):
    "Write a model as a folder, or as one file."
    if not bundle:
        (out := folder/'model').mkdir()
        for name, data in files.items(): (out/name).write_bytes(data)
        return out
    with ZipFile(out := folder/'model.bundle', 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return out


def predict(path, case, weights):
    "The prediction of a case, as it is written and shown."
    found = predict_case(case, open_experts([path], weights), anyway=True, maps=False)
    return to_row(found) | dict(shown=json.dumps(
        [found.called, found.certainty, found.subgroups, found.costs], default=str))


def name_outcome(path, case, weights, before, old=False):
    "Outcome of a mutation and its message; `old`: without digests, so parts shown may be absent."
    got = {}
    end = attempt(lambda: got.update(predict(path, case, weights)))
    if end: return (end.split(':')[0] if end.startswith(BAD) else 'refused'), end
    if got == before: return 'same', ''
    if UNKNOWN in got['doubts'] and UNKNOWN not in before['doubts']: return 'named', got['doubts']
    differ = [k for k in before if got[k] != before[k]]
    if old and not {*differ} - {'shown', 'called_malignant', 'called_abnormal'}: return 'same', ''
    return 'WRONG', f'{differ} differ without a message'


def mutate(
    made:tuple, # from `make_models`
    scratch:Path, # folder
    n:int, # mutations
    seed:int, # the same mutations again
    only:int=-1, # run this one alone; -1: all
) -> pd.DataFrame: # kind, how, outcome, detail; one row per mutation
    "Damage, predict and rate the outcomes."
    (models, case, weights), rows = made, []
    use = {k: '' if 'bundle' in k else str(weights) for k, _ in models}
    files = {k: read_files(path) for k, path in models.items()}
    before = {k: predict(models[k, 0], case, use[k]) for k in use}
    for i in range(n) if only < 0 else [only]:
        rng, kind = random.Random(f'{seed}-{i}'), [*use][i % len(use)]
        bundle = 'bundle' in kind
        with tempfile.TemporaryDirectory(dir=scratch) as d:
            if bundle and rng.random() < .3:
                how, data = damage_bytes(models[kind, 0].read_bytes(), rng)
                (path := Path(d)/'model.bundle').write_bytes(data)
            else:
                how, content = damage(files[kind, 0], files[kind, 1], rng)
                path = write_model(content, Path(d), bundle)
            old = 'unsealed' in how
            outcome, detail = name_outcome(path, case, use[kind], before[kind], old)
        rows.append(dict(i=i, kind=kind, how=how, outcome=outcome, detail=detail))
        if outcome in BAD: print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main():
    "Print the outcomes of all kinds."
    o = read_options(__doc__, 300)
    with tempfile.TemporaryDirectory(prefix='cesm_mutate_') as d:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            made = make_models(Path(d))
        table = mutate(made, Path(d), o.n, o.seed, o.only)
    report(table, 'kind', 'exports of a PHANTOM', o)


if __name__ == '__main__': main()
