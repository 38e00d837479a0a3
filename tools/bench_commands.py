"""Time `cesm_check` and `cesm_audit` against their unavoidable work, in processor time.

usage: OMP_NUM_THREADS=1 python tools/bench_commands.py --data CDD-CESM
The check cannot be faster than decoding each image once, the audit not faster than growing its
forests, which is timed while it runs.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is imported
import argparse
import io
import tempfile
import time
from contextlib import redirect_stdout
from unittest.mock import patch

import cv2
from sklearn.ensemble import RandomForestClassifier

from cesm_nb.cohort import quality
from cesm_nb.cli import cesm_audit
from cesm_nb.data import read_dataset


def seconds(job):
    "Processor seconds of one call in this process."
    start = time.process_time()
    with redirect_stdout(io.StringIO()): job()
    return time.process_time() - start


def main():
    "Print seconds and ratios."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--data', required=True, help='folder in the TCIA layout')
    ap.add_argument('--audit', nargs=argparse.REMAINDER, default=[],
                    help='options of cesm_audit, last on the line')
    a = ap.parse_args()
    cv2.setNumThreads(1)
    files, forests, fit = read_dataset(a.data).images.path.dropna(), [], RandomForestClassifier.fit

    def timed(*args, **more):
        start = time.process_time()
        out = fit(*args, **more)
        forests.append(time.process_time() - start)
        return out

    with tempfile.TemporaryDirectory() as d:
        decode = seconds(lambda: [cv2.imread(f, cv2.IMREAD_GRAYSCALE) is None for f in files])
        checked = seconds(lambda: quality.main(a.data, f'{d}/check'))
        options = [a.data, '--out', f'{d}/audit', '--n-jobs', '1', *a.audit]
        with patch.object(RandomForestClassifier, 'fit', timed):
            audited = seconds(lambda: cesm_audit(options))
    print(f'cesm_check: {checked:.1f} s for {len(files)} images; '
          f'{checked/decode:.1f} x decoding them')
    print(f'cesm_audit: {audited:.1f} s with {len(forests)} forests; '
          f'{audited/sum(forests):.1f} x growing them')


if __name__ == '__main__': main()
