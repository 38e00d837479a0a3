"""Train a small phantom under both protocols; write predictions, a tensor and settings to a folder.

usage: python tests/make_pins.py [--out tests/pins]
`tests/test_pins.py` compares the current code with these files. Remake them only if numerics are
meant to change, and give the reason in the commit. The arithmetic is common to all x86-64
processors, in one thread; since not every library can be restricted to it, the test is exact on the
kind of processor in `processor.txt` and has a tolerance elsewhere.
"""
import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAME_EVERYWHERE = dict( # read when torch is imported
    ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41', MKL_CBWR='COMPATIBLE',
    MKL_NUM_THREADS='1', OMP_NUM_THREADS='1')


def find_processor():
    "Return the kind of processor; '' if the system does not report it."
    info = Path('/proc/cpuinfo')
    lines = [line.partition(':') for line in info.read_text().splitlines()] if info.exists() else []
    facts = {k.strip(): v.strip() for k, _, v in lines}
    keys = 'model name', 'cpu family', 'model', 'stepping'
    return ', '.join(facts.get(k, '') for k in keys).strip(', ')


def make(out):
    "Make both runs; store the predictions, history, settings, splits and one tensor of each."
    import torch
    from cesm_nb.synthetic.phantom import make_phantom
    from cesm_nb.core.settings import make_config
    from cesm_nb.train import fit
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    (out/'processor.txt').write_text(find_processor() + '\n')
    root = make_phantom(out/'data', 20, seed=0, signal=2., size_px=96, progress=False)
    for protocol in ('paper', 'clinical'):
        run = out/'runs'/protocol
        settings = dict(data_root=str(root), run_dir=str(run), protocol=protocol, image_size=32,
                        epochs=2, batch_size=4, pretrained=False, device='cpu',
                        mixed_precision='no', lr=1e-5)
        fit(make_config(settings))
        kept = out/protocol
        kept.mkdir(parents=True, exist_ok=True)
        for name in ('predictions.csv', 'history.csv', 'splits.csv', 'manifest.csv'):
            shutil.copy(run/name, kept)
        (kept/'config.json').write_text((run/'config.json').read_text().replace(f'{out}/', ''))
        shutil.copy(sorted((run/'tensors').glob('*.pt'))[0], kept/'tensor.torch')


def make_apart(out):
    "Make both runs in a separate process, with the arithmetic `SAME_EVERYWHERE`."
    command = [sys.executable, __file__, '--here', '--out', str(out)]
    done = subprocess.run(command, env=os.environ | SAME_EVERYWHERE, timeout=900,
                          capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--out', type=Path, default=HERE/'pins')
    ap.add_argument('--here', action='store_true', help='in this process, with its own arithmetic')
    a = ap.parse_args()
    make(a.out) if a.here else make_apart(a.out)


if __name__ == '__main__': main()
