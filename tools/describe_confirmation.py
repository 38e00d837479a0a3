"""Compare published scores with those under another mix of labels, and with the BI-RADS category.

usage: python tools/describe_confirmation.py results/confirmation DATA [--write]
`--write` writes composition.csv, strata.csv and reader.csv beside the predictions. DATA is a copy
of the data set, whose sheet holds the labels. The stratum of a breast is its own label and that of
the contralateral breast, if there is one. The test breasts of the results are weighted so that the
strata have the shares that they have among all other breasts of DATA; the unweighted score is
listed too. Intervals are 95 %, over test patients. The comparison with the radiologist's BI-RADS is
paired, on the same breasts, and circular: reader and reference standard share information.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from cesm_nb.leakage.controls import beside_reader
from cesm_nb.data import breasts, read_dataset
from cesm_nb.core.terms import CLASSES, KEYS, PROBS
from cesm_nb.stats.intervals import bootstrap_weights, interval_ends
from cesm_nb.experiments.publish import PREDICTIONS, read_predictions_of_grid
from cesm_nb.reporting.tables import with_interval
from cesm_nb.stats.scores import weighted_scores

READ = ('best', 'best, each breast by itself') # variants that are compared with the radiologist
SCORES = ('auc', 'auc_malignant', 'auc_abnormal', 'accuracy')


def name_strata(
    table:pd.DataFrame, # breasts: patient_id, side, label
) -> pd.Series: # index patient_id, side; text: own label, contralateral label
    "Name each breast's stratum."
    label = table.set_index(KEYS).label
    other = [label.get((p, dict(L='R', R='L')[s])) for p, s in label.index]
    name = dict(enumerate(CLASSES))
    return pd.Series([f'{name[own]}, {name.get(o, "none")}' for own, o in zip(label, other)],
                     label.index)


def weigh(
    tested:pd.Series, # strata of the test breasts
    others:pd.Series, # strata of the breasts whose mix is wanted
) -> np.ndarray: # (n,) weights of the test breasts, mean 1; 0 in strata that the others lack
    "Weight test breasts to the mix of the others; strata without test breasts stay unrepresented."
    share = others.value_counts(normalize=True)/tested.value_counts(normalize=True)
    weights = tested.map(share).fillna(0).to_numpy()
    return weights/weights.mean()


def compare(folder, data, n_draws=2000):
    "A row per variant and score: value, low and high, unweighted and weighted to the others' mix."
    facts = json.loads((folder/'settings.json').read_text())
    tests, out, s = read_predictions_of_grid(folder, data, facts), [], facts['settings']
    table = breasts(data.images, s['modality'], s['label_scope'])
    strata = name_strata(table[table.n_annotated_views > 0])
    first = next(iter(next(iter(tests.values())).values()))
    keys = pd.MultiIndex.from_frame(first[KEYS])
    tested, others = strata.loc[keys], strata.drop(keys)
    mix = weigh(tested, others)
    draws = bootstrap_weights(first.patient_id.to_numpy(), n_draws)
    ends = interval_ends(first.patient_id.nunique())
    for variant, seeds in tests.items():
        for way, w in (('as it is', np.ones(len(first))), ('weighted', mix)):
            weights = np.r_[[np.ones(len(first))], draws]*w
            score = lambda t: weighted_scores(t.label.to_numpy(), t[PROBS].to_numpy(), weights,
                                              names=SCORES)
            found = [score(t) for t in seeds.values()]
            for k in SCORES:
                value, *drawn = np.mean([f[k] for f in found], 0)
                low, high = np.nanpercentile(drawn, ends)
                out.append(dict(variant=variant, mix=way, score=k, value=value, low=low, high=high,
                                seeds=len(seeds)))
    counts = pd.DataFrame({'tested': tested.value_counts(), 'others': others.value_counts()})
    counts = counts.fillna(0).astype(int).rename_axis('own label, contralateral label')
    return pd.DataFrame(out), counts


def main():
    "Print and write."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path)
    ap.add_argument('data', type=Path)
    ap.add_argument('--write', action='store_true', help='write the tables beside the predictions')
    a = ap.parse_args()
    table, counts = compare(a.folder, read_dataset(a.data))
    print(counts.to_string(), '\n')
    text = table.assign(text=table.apply(with_interval, axis=1))
    wide = text.pivot(index=['variant', 'mix'], columns='score', values='text')
    print(wide[list(SCORES)].to_string(), '\n')
    read = lambda variant: beside_reader(a.folder/PREDICTIONS, a.data, variant)
    reader = pd.concat([read(v).assign(variant=v) for v in READ])
    reader = reader.reset_index().set_index(['variant', 'score'])
    print(reader.to_string())
    if not a.write: return
    (a.folder/'composition.csv').write_text(table.round(6).to_csv(index=False))
    counts.to_csv(a.folder/'strata.csv')
    reader.to_csv(a.folder/'reader.csv')


if __name__ == '__main__': main()
