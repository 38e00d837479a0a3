"""Time the bootstrap of all scores against a loop over scikit-learn, in processor time on one core.

usage: OMP_NUM_THREADS=1 python tools/bench_evaluate.py [--patients 283] [--draws 2000] [--loop 100]
Both use the same draws. The loop runs `--loop` of them and its time is scaled up; that both give
the same scores is checked.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is imported
import argparse
import time

import numpy as np

from cesm_nb.stats.intervals import bootstrap_weights, interval_table
from cesm_nb.synthetic.predictions import simulate, sklearn_scores
from cesm_nb.stats.scores import weighted_scores


def main():
    "Print seconds and their ratio."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--patients', type=int, default=283, help='patients, two breasts each')
    ap.add_argument('--draws', type=int, default=2000)
    ap.add_argument('--loop', type=int, default=100, help='draws that the loop actually computes')
    a = ap.parse_args()
    s = simulate(a.patients)
    flags = {'sens90': s.prob[:, 2] > .2, 'spec90': s.prob[:, 2] > .6}
    start = time.process_time()
    table = interval_table(s.label, s.prob, s.patient_id, a.draws, flags=flags)
    ours = time.process_time() - start
    w = bootstrap_weights(s.patient_id, a.draws)[:a.loop]
    fast = weighted_scores(s.label, s.prob, w)
    start = time.process_time()
    slow = [sklearn_scores(s.label, s.prob, each) for each in w]
    loop = (time.process_time() - start)*a.draws/a.loop
    for name in slow[0]: np.testing.assert_allclose(fast[name], [d[name] for d in slow], atol=1e-12)
    print(f'{len(s.label)} breasts, {a.draws} draws, one core')
    print(f'ours:         {ours:7.2f} s for {len(table)} scores with intervals')
    print(f'scikit-learn: {loop:7.2f} s for {len(slow[0])} scores ({a.loop} draws measured)')
    print(f'ratio:        {loop/ours:7.0f}')


if __name__ == '__main__': main()
