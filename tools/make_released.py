"""Make the released model: fit a recipe on all breasts, calibrate it on out-of-fold predictions.

    python tools/make_released.py DATA RECIPE PREDICTIONS [--set KEY=VALUE ...] [--variant NAME]

DATA is a folder with all breasts, RECIPE a YAML file of settings of a linear probe that takes each
breast alone, PREDICTIONS the `predictions.csv.gz` of published results, such as results/probe, of
which `--variant` names the rows. `cesm_nb/released/` is replaced; it holds fitted numbers and
aggregates. Tables of coverage, subgroups, rejections and detection are written to results/released:
counts and scores, nothing of a single patient. An interrupted run continues with the features that
are already computed."""
import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from count_ood import count, flag_cases

from cesm_nb.cases.ood import count_refusals, deal_folds, fit_patients, sign_breasts, sign_others
from cesm_nb.cases.prepare import open_member
from cesm_nb.cases.released import (
    describe_released, export_released, hold_out_features, load_released, read_deals)
from cesm_nb.cases.subgroups import read_own
from cesm_nb.cli import read_file
from cesm_nb.core.files import write_csv, write_json
from cesm_nb.core.recipes import Job, find_recipe
from cesm_nb.core.runs import CHECKPOINTS, run_file
from cesm_nb.core.settings import make_config
from cesm_nb.core.terms import KEYS
from cesm_nb.data import breasts, read_dataset
from cesm_nb.experiments.reproduce import read_changes
from cesm_nb.tensorize import prepare, tensorize
from cesm_nb.train import check_config, describe_run
from cesm_nb.training.dataset import load_inputs

ROOT = Path(__file__).resolve().parent.parent


def fit_everything(cfg):
    "Fit a linear probe on all breasts; the run folder holds what cases need of it."
    switches, device, dtype = check_config(cfg)
    manifest = tensorize(cfg := prepare(cfg))
    splits, run = manifest[KEYS].assign(split='train'), Path(cfg.run_dir)
    data = load_inputs(cfg.tensor_dir, manifest, splits, switches['density_missing'])
    recipe, every = find_recipe(cfg.model), torch.arange(len(manifest))
    torch.manual_seed(cfg.seed)
    model = recipe.build(
        vars(cfg), switches, pretrained=cfg.pretrained, weights_dir=cfg.weights_dir)
    write_json(describe_run(cfg, model, device, dtype, splits), run_file(run, 'config'))
    write_csv(manifest, run_file(run, 'manifest'))
    write_csv(splits, run_file(run, 'splits'))
    parts = dict(train=every.to(device), val=every[:0].to(device))
    recipe.fit(model, data.to(device), parts, cfg, Job(run/CHECKPOINTS, dtype))
    return manifest, cfg.tensor_dir


def flag_by_fold(member, own, rows, data, sample):
    "Rejections of breasts as they are and altered, with limits from other patients."
    signs, fold = sign_breasts(member, own), deal_folds(own.table.patient_id.to_numpy())
    others = sign_others(member)
    images = read_dataset(data).images
    table = breasts(images, member.preparation['tensors']['modality'])
    every, parts = own.table[KEYS].assign(fold=fold), []
    for f in np.unique(fold):
        part = table.merge(every[every.fold == f][KEYS])
        altered = set(part.sample(min(len(part), -(-sample//5)), random_state=0).index)
        about = fit_patients(own, signs, rows, fold != f, others)
        parts.append(flag_cases(member, about, images, part, altered))
    return pd.concat(parts)


def write_tables(found, flags, detected, out):
    "Write the tables of results/released."
    out.mkdir(parents=True, exist_ok=True)
    c, ends = found['certainty'], ('', '_low', '_high')
    sizes = np.array(c['sizes'])
    row = dict(level=c['level'], guaranteed=2*c['level'] - 1, breasts=int(sizes.sum()),
               patients=c['n_test_women'], deals=c['deals'], temperature=c['temperature'],
               limit=c['limit'], mean_size=(sizes*[1, 2, 3]).sum()/sizes.sum(),
               full_sets=sizes[2]/sizes.sum())
    row |= {f'coverage{e}': v for e, v in zip(ends, c['covered'])}
    row |= dict(zip(('one_class', 'two_classes', 'three_classes'), map(int, sizes)))
    row |= {f'{k}{e}': v for k, three in c['scores'].items() for e, v in zip(ends, three)}
    calls = [dict(call=k, threshold=v['threshold']) | {
        f'{n}{e}': x for n in ('sensitivity', 'specificity') for e, x in zip(ends, v[n])}
        for k, v in c['calls'].items() if v]
    groups = [dict(subgroup=k, breasts=g['breasts'], patients=g['women']) | {
        f'{n}{e}': x for n in ('accuracy', 'auc') if n in g for e, x in zip(ends, g[n])}
        for k, g in found['groups'].items()]
    tables = dict(
        coverage=pd.DataFrame([row]), calls=pd.DataFrame(calls), subgroups=pd.DataFrame(groups),
        rejections=count_refusals(flags).rename_axis('reason').reset_index().rename(
            columns=dict(women='patients', refused='rejected')),
        detection=detected.reset_index())
    for name, table in tables.items():
        write_csv(table.round(4), out/f'{name}.csv')
        print(f'{name}\n{table.round(3).to_string(index=False)}\n')


def main():
    "Make the model and its tables."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('data', type=Path, help='folder in the TCIA layout')
    ap.add_argument('recipe', type=Path, help='YAML file of settings')
    ap.add_argument('predictions', type=Path, help='predictions.csv.gz of published results')
    ap.add_argument('--variant', default='single breast', help='whose predictions')
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='other settings')
    ap.add_argument('--run', type=Path, default=Path('runs/released'), help='tensors and features')
    ap.add_argument('--out', type=Path, default=ROOT/'cesm_nb/released', help='replaced')
    ap.add_argument('--results', type=Path, default=ROOT/'results/released', help='for tables')
    ap.add_argument('--sample', type=int, default=60, help='breasts that are altered')
    o = ap.parse_args()
    given = read_file(o.recipe) | read_changes(o.set)
    cfg = make_config(given | dict(data_root=str(o.data), run_dir=str(o.run)))
    if cfg.model != 'probe' or cfg.other_breast != 'none':
        raise SystemExit(f"{o.recipe}: expected model: probe with other_breast: none")
    cfg = replace(cfg, fit_on='train+val', n_folds=0, fold=0, splits_csv='', tensor_dir='')
    manifest, tensor_dir = fit_everything(cfg)
    deals = read_deals(o.predictions, o.variant, manifest)
    member = open_member(o.run)
    own = read_own(member)
    rows = hold_out_features(member, own, tensor_dir)
    found, flags = describe_released(member, own, deals, rows)
    shutil.rmtree(beside := o.run/'released', ignore_errors=True)
    export_released(o.run, found, beside)
    load_released(beside, cfg.weights_dir) # it opens
    detected = count(flag_by_fold(member, own, rows, o.data, o.sample))
    write_tables(found, flags, detected, o.results)
    shutil.rmtree(o.out, ignore_errors=True)
    shutil.copytree(beside, o.out)
    facts = json.loads((o.out/'config.json').read_text())['facts']
    kept = 'commit', 'data_fingerprint', 'phantom', 'versions', 'recipe'
    write_json({k: facts[k] for k in kept}, o.results/'settings.json')
    size = sum(f.stat().st_size for f in o.out.iterdir())
    print(f'{o.out}: {size/1e3:.0f} kB, {len(manifest)} breasts')


if __name__ == '__main__': main()
