"""Describe the probe's published out-of-fold predictions: subgroups, findings, a screening mix.

usage: python tools/describe_probe.py results/probe DATA [--write]
`--write` writes shared.csv, subgroups.csv, findings.csv, screening.csv and pairs.csv beside the
predictions. shared.csv has the scores of the breasts that `results/ladder` and `results/primary`
tested too, so that the four streams and the probe stand side by side on the same breasts.
DATA is a copy of the data set, whose sheet holds labels, age, density and findings. Intervals are
95 %, over patients. Probabilities are averaged over the deals of the folds.

screening.csv and pairs.csv: the table of class pairs of `both breasts` is fitted to the
probabilities of `single breast` of the patients with both breasts, then applied to pairs that are
drawn from the same breasts, independently and with the class shares of MIX.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cesm_nb.cases.subgroups import name_groups
from cesm_nb.cohort.quality import list_findings
from cesm_nb.core.terms import CLASSES, KEYS, PROBS, VIEWS
from cesm_nb.data import breasts, read_dataset
from cesm_nb.experiments.aggregate import pool_variants, score_variants
from cesm_nb.experiments.publish import PREDICTIONS, read_predictions_of_grid
from cesm_nb.probe.fit import find_within, sum_losses
from cesm_nb.probe.model import pair_logits
from cesm_nb.probe.region_attention import minimise
from cesm_nb.stats.intervals import bootstrap_weights, interval_ends
from cesm_nb.stats.scores import weighted_scores
from cesm_nb.training.dataset import find_contralateral

VARIANTS = 'single breast', 'both breasts'
SCORES = 'auc', 'auc_malignant', 'auc_abnormal'
FEW = 10 # breasts; smaller groups are not listed
MIX = .95, .04, .01 # of normal, benign and malignant breasts in the simulated screening
N_PAIRS = 100_000 # drawn for it


def score_shared(read, beside):
    "Scores of the breasts that another published grid tested, a row per variant and score."
    keys = pd.read_csv(beside/PREDICTIONS)[KEYS].drop_duplicates()
    kept = {v: {seed: t.merge(keys) for seed, t in read[v].items()} for v in VARIANTS}
    t = score_variants(pool_variants(kept)).reset_index()
    columns = ['variant', 'score', 'value', 'low', 'high', 'breasts', 'patients']
    return t.loc[t.score.isin([*SCORES, 'accuracy']), columns]


def mean_over_deals(read, data, s):
    "Test breasts with label, probabilities (mean over deals) and the sheet's columns, per variant."
    table = breasts(data.images, s['modality'], s['label_scope'])
    sheet = table.set_index(KEYS)[['age_years', 'density', 'cc_name', 'mlo_name']]
    out = {}
    for v in VARIANTS:
        every = pd.concat(read[v].values())
        mean = every.groupby(KEYS)[[*PROBS, 'label']].mean().astype(dict(label=int))
        out[v] = mean.join(sheet).reset_index()
    return out


def tabulate_subgroups(tested, n_draws=2000):
    "A row per variant, subgroup and score."
    rows = []
    for variant, t in tested.items():
        views = [[v for v, name in zip(VIEWS, of) if isinstance(name, str)]
                 for of in zip(t.cc_name, t.mlo_name)]
        names = [name_groups(a, d if isinstance(d, str) else '', v)
                 for a, d, v in zip(t.age_years, t.density, views)]
        for name in sorted({g for of in names for g in of}):
            own = t[[name in of for of in names]]
            if own.label.value_counts().reindex(range(3), fill_value=0).min() < FEW: continue
            w = bootstrap_weights(own.patient_id.to_numpy(), n_draws)
            found = weighted_scores(own.label.to_numpy(), own[PROBS].to_numpy(),
                                    np.r_[np.ones((1, len(own))), w], names=SCORES)
            ends = interval_ends(own.patient_id.nunique())
            for k in SCORES:
                low, high = np.nanpercentile(found[k][1:], ends)
                rows.append(dict(variant=variant, subgroup=name, score=k, value=found[k][0],
                                 low=low, high=high, breasts=len(own),
                                 patients=own.patient_id.nunique()))
    return pd.DataFrame(rows)


def tabulate_findings(tested, images):
    "A row per variant and finding: abnormal breasts, share called normal, median p of its class."
    found = list_findings(images[images.modality == 'CM'])[[*KEYS, 'finding']].drop_duplicates()
    rows = []
    for variant, t in tested.items():
        t = t.assign(called=t[PROBS].to_numpy().argmax(1), own=t[PROBS].to_numpy()[
            np.arange(len(t)), t.label])
        t = t[t.label > 0].merge(found, on=KEYS)
        for (finding, label), g in t.groupby(['finding', 'label']):
            if len(g) < FEW: continue
            rows.append(dict(
                variant=variant, label=CLASSES[label], finding=finding, breasts=len(g),
                patients=g.patient_id.nunique(), called_normal=(g.called == 0).mean(),
                called_right=(g.called == label).mean(), p_of_its_class=g.own.median()))
    return pd.DataFrame(rows).sort_values(['variant', 'label', 'called_normal'],
                                          ascending=[True, True, False])


def fit_table(logits, label, other):
    "The table of class pairs and the offsets of single breasts, given the breasts' logits."
    free = [logits.new_zeros(3, 3), logits.new_zeros(3)]
    beside = torch.where(other < 0, -1, label[other])
    def loss():
        joint = pair_logits(logits, logits[other], other >= 0, *free)
        penalty = sum(p.square().sum()/10 for p in free)
        return sum_losses(joint, label, logits.new_ones(3), beside) + penalty/2
    minimise(loss, free, 200)
    return free


def simulate_screening(single, seed=0):
    "Scores with and without the table, of this data set's pairs and of pairs in a screening mix."
    logits = torch.tensor(single[PROBS].to_numpy()).clamp(1e-6).log()
    label = torch.tensor(single.label.to_numpy())
    other = find_contralateral(single)
    every = torch.arange(len(single))
    table = fit_table(logits, label, find_within(every, other))
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(single.label == k) for k in range(3)]
    classes = rng.choice(3, (2, N_PAIRS), p=MIX)
    drawn = np.array([[rng.choice(of_class[k]) for k in row] for row in classes])
    pairs = {'CDD-CESM': (every[other >= 0], other[other >= 0]),
             f'screening, {MIX[0]:.0%} normal': tuple(torch.from_numpy(drawn))}
    rows = []
    for mix, (own, beside) in pairs.items():
        joint = pair_logits(logits[own], logits[beside], torch.ones(len(own), dtype=bool), *table)
        for model, found in (('single breast', logits[own]), ('both breasts', joint.logsumexp(2))):
            prob, y = found.softmax(1).numpy(), label[own].numpy()
            s = weighted_scores(y, prob, np.ones((1, len(y))), names=SCORES)
            rows.append(dict(mix=mix, model=model, **{k: s[k][0] for k in SCORES},
                             abnormal=(y > 0).mean(), predicted_abnormal=1 - prob[:, 0].mean()))
    symmetric = pd.DataFrame((table[0] + table[0].T).numpy()/2, CLASSES, CLASSES)
    return pd.DataFrame(rows), symmetric


def main():
    "Print and write."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path)
    ap.add_argument('data', type=Path)
    ap.add_argument('--write', action='store_true', help='write the tables beside the predictions')
    a = ap.parse_args()
    data, facts = read_dataset(a.data), json.loads((a.folder/'settings.json').read_text())
    read = read_predictions_of_grid(a.folder, data, facts)
    tested = mean_over_deals(read, data, facts['settings'])
    screening, table = simulate_screening(tested['single breast'])
    tables = dict(shared=score_shared(read, a.folder.parent/'ladder'),
                  subgroups=tabulate_subgroups(tested),
                  findings=tabulate_findings(tested, data.images), screening=screening)
    for name, t in tables.items():
        print(f'{name}\n{t.round(3).to_string(index=False)}\n')
        if a.write: (a.folder/f'{name}.csv').write_text(t.round(6).to_csv(index=False))
    print(f'table of class pairs, log odds\n{table.round(2).to_string()}')
    if a.write: table.round(4).rename_axis('breast').to_csv(a.folder/'pairs.csv')


if __name__ == '__main__': main()
