"""What published predictions are worth beside the mix of labels they were tested on, and beside the radiologist's BI-RADS.

usage: python tools/describe_confirmation.py results/confirmation DATA [--write]
`--write` writes composition.csv, strata.csv and reader.csv beside the predictions. DATA is a copy of the data set, whose sheet holds the labels. A breast belongs to a stratum by its own label and the label of its
contralateral breast (or that there is none). The test breasts of the results are weighted so that the strata have the shares that
they have among all other breasts of DATA; beside it stands the unweighted score. Intervals are 95 %, over test patients.
The comparison with BI-RADS is paired, on the same breasts, and circular: reader and reference standard share information.
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
    "Weight test breasts to the mix of the others; a stratum without a test breast cannot be made up for."
    share = others.value_counts(normalize=True)/tested.value_counts(normalize=True)
    weights = tested.map(share).fillna(0).to_numpy()
    return weights/weights.mean()


def compare(folder, data, n_draws=2000):
    "A row per variant and score: value, low and high as it is, and weighted to the mix of the other breasts."
    facts = json.loads((folder/'settings.json').read_text())
    tests, out = read_predictions_of_grid(folder, data, facts), []
    table = breasts(data.images, facts['settings']['modality'], facts['settings']['label_scope'])
    strata = name_strata(table[table.n_annotated_views > 0])
    first = next(iter(next(iter(tests.values())).values()))
    keys = pd.MultiIndex.from_frame(first[KEYS])
    tested, others = strata.loc[keys], strata.drop(keys)
    mix = weigh(tested, others)
    draws = bootstrap_weights(first.patient_id.to_numpy(), n_draws)
    ends = interval_ends(first.patient_id.nunique())
    for variant, seeds in tests.items():
        for way, w in (('as it is', np.ones(len(first))), ('weighted', mix)):
            found = [
                weighted_scores(t.label.to_numpy(), t[PROBS].to_numpy(),
                                np.r_[[np.ones(len(t))], draws]*w, names=SCORES)
                for t in seeds.values()
            ]
            for k in SCORES:
                each = np.mean([f[k] for f in found], 0)
                low, high = np.nanpercentile(each[1:], ends)
                out.append(
                    dict(variant=variant, mix=way, score=k, value=each[0], low=low, high=high,
                         seeds=len(seeds)))
    shares = pd.DataFrame({'tested': tested.value_counts(),
                           'others': others.value_counts()}).fillna(0).astype(int)
    return pd.DataFrame(out), shares.rename_axis('own label, contralateral label')


def main():
    "Print and write."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path)
    ap.add_argument('data', type=Path)
    ap.add_argument('--write', action='store_true', help='write the tables beside the predictions')
    a = ap.parse_args()
    table, shares = compare(a.folder, read_dataset(a.data))
    print(shares.to_string(), '\n')
    text = table.assign(
        text=table.apply(lambda r: f'{r.value:.3f} [{r.low:.3f}, {r.high:.3f}]', axis=1))
    print(
        text.pivot(index=['variant', 'mix'], columns='score',
                   values='text')[list(SCORES)].to_string(), '\n')
    reader = pd.concat(
        [beside_reader(a.folder/PREDICTIONS, a.data, v).assign(variant=v) for v in READ])
    reader = reader.reset_index().set_index(['variant', 'score'])
    print(reader.to_string())
    if not a.write: return
    (a.folder/'composition.csv').write_text(table.round(6).to_csv(index=False))
    shares.to_csv(a.folder/'strata.csv')
    reader.to_csv(a.folder/'reader.csv')


if __name__ == '__main__': main()
