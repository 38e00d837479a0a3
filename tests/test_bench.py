"The benchmarks complete on small data; their numbers are measurements and are not asserted."
import re
import subprocess
import sys

import pandas as pd
import pytest

from cesm_nb.core.terms import REGIONS_NAME
from cesm_nb.synthetic.phantom import make_phantom
from conftest import PATIENCE, ROOT

OUTSIDE = { # region -> centre and radius of its circle
    'left': (-500, 40, 30), 'above': (40, -500, 30), 'right': (5000, 40, 30),
    'below': (40, 5000, 30), 'edge': (0, 0, 9), 'dot': (50, 50, .2)}


def bench(name, *args):
    "Return a benchmark's output; a crash below Python, as in OpenCV, is a negative return code."
    command = [sys.executable, f'tools/{name}.py', *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


@pytest.fixture(scope='module')
def odd(module_path):
    "A phantom with regions outside the image, on its corner and below a pixel, one per image."
    root = make_phantom(module_path/'odd'/'data', n_patients=8, size_px=100, progress=False)
    regions = pd.read_csv(root/REGIONS_NAME, dtype=str)
    names = regions['#filename'][regions['#filename'].str.contains('_CM_')].unique()
    assert len(names) >= len(OUTSIDE)
    circle = '{"name":"circle","cx":%s,"cy":%s,"r":%s}'
    firsts = [regions[regions['#filename'] == name].iloc[[0]] for name in names[:len(OUTSIDE)]]
    more = [row.assign(region_shape_attributes=circle % place)
            for row, place in zip(firsts, OUTSIDE.values())]
    pd.concat([regions, *more]).to_csv(root/REGIONS_NAME, index=False)
    return root


def test_tensorize_benchmark_with_outside_regions(odd):
    "The plain reference for the tensors leaves such a region out, as the package does."
    peer = odd.parent/'peer.py'
    peer.write_text('import json; print(json.dumps(dict(images_per_s=5)))')
    output = bench('bench_tensorize', '--data', odd, '--rounds', 1, '--peer', peer)
    pattern = r'largest difference from the plain reference: ([\d.]+) of 255'
    assert float(re.search(pattern, output)[1]) < .5
    for ratio in ('one process / decode only', 'two processes / one process', 'one process / peer'):
        assert re.search(rf'{ratio}: [\d.]+', output), output


def test_commands(phantom):
    "`cesm_check` and `cesm_audit`, compared with decoding alone and growing trees alone."
    output = bench('bench_commands', '--data', phantom, '--audit', '--n-repeats', 1,
                   '--n-trees', 10, '--n-draws', 50)
    lines = (r'cesm_check: .* x decoding them\n'
             r'cesm_audit: .* with [1-9]\d* forests; [\d.]+ x growing them')
    assert re.search(lines, output), output
