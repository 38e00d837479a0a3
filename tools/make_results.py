"""Run both protocols on real images, one 70/15/15 split or K folds, and write the aggregated tables and figures of `results/`.

usage: python tools/make_results.py --data FOLDER [--runs runs/results] [--out results] [--folds 5] [--set KEY=VALUE ...]
Folds are dealt by patient under both protocols, on the same breasts, so that their difference is paired and not the split's.
Runs resume where they were cut off. Nothing of a single patient is written to `--out`.
"""
import argparse
import json
import shutil
from pathlib import Path

import yaml

from cesm_nb.evaluate import banner, compare, evaluate
from cesm_nb.train import ShowEpochs, fit, make_config

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ('data_root', 'run_dir', 'tensor_dir', 'weights_dir', 'splits_csv', 'fold') # say where, not what


def run_protocol(
    protocol:str, # 'paper' or 'clinical'
    data:Path, # data set folder
    runs:Path, # where run folders go
    n_folds:int, # 0: one split
    changes:dict, # settings on top of the protocol's file
) -> list: # run folders
    "Train one protocol, all of its folds on the same tensors."
    base = yaml.safe_load((ROOT/'configs'/f'{protocol}.yaml').read_text()) | (dict(split_unit='patient') if n_folds else {}) | changes
    size, made = base['image_size'], []
    for fold in range(max(n_folds, 1)):
        name = f'{protocol}-fold{fold}of{n_folds}' if n_folds else f'{protocol}-split'
        print(f'--- {name}', flush=True)
        made.append(fit(make_config(base | dict(
            data_root=str(data), run_dir=str(runs/name), tensor_dir=str(runs/f'tensors-{protocol}-{size}'),
            n_folds=n_folds, fold=fold)), ShowEpochs()).run_dir)
    return made


def publish(
    name:str, # folder below `out`
    run_dirs:dict, # protocol -> run folders
    runs:Path, # where the joint evaluation goes
    out:Path, # results folder
):
    "Copy what is aggregated: tables, figures, settings; both protocols in one table."
    found = {}
    for protocol, folders in run_dirs.items():
        where = runs/f'{name}-{protocol}'
        found[protocol] = e = evaluate(folders, where, inside=False)
        if e['config']['phantom']: raise SystemExit('this is a phantom: results/ holds real runs only')
        target = out/name/protocol
        shutil.rmtree(target, ignore_errors=True)
        for part in ('tables', 'figures'): shutil.copytree(where/part, target/part)
        settings = {k: v for k, v in e['config']['settings'].items() if k not in LOCAL}
        (target/'settings.json').write_text(json.dumps(e['config'] | dict(settings=settings), indent=1) + '\n')
        shutil.copy(where/'metrics.json', target/'metrics.json')
        print(banner(e['config']))
    print(*compare(found, runs/f'{name}-joint'), sep='\n', flush=True)
    shutil.rmtree(out/name/'joint', ignore_errors=True)
    shutil.copytree(runs/f'{name}-joint', out/name/'joint')


def main():
    "Train what is missing, then write `results/`."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--runs', type=Path, default=ROOT/'runs'/'results')
    ap.add_argument('--out', type=Path, default=ROOT/'results')
    ap.add_argument('--folds', type=int, default=5, help='0: one split as each protocol makes it')
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='fields of TrainConfig')
    a = ap.parse_args()
    changes = {k: yaml.safe_load(v) for k, _, v in (s.partition('=') for s in a.set)}
    name = f'folds_{a.folds}' if a.folds else 'split_70_15_15'
    publish(name, {p: run_protocol(p, a.data, a.runs, a.folds, changes) for p in ('paper', 'clinical')}, a.runs, a.out)


if __name__ == '__main__': main()
