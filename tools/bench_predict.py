"""How the time from two DICOM files to a page splits, the share of the network in it, and cases per second.

    python tools/bench_predict.py [--run RUN] [--cases 100] [--repeat 5]

Without --run a run is made: the two backbones of the paper, untrained, 224 px, on a phantom. Times are medians of --repeat in wall
seconds; imports and opening the model, which happen once, stand apart."""
import argparse
import io
import statistics
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from time import perf_counter


def clock(repeat, work, *args):
    "Median of wall seconds, and the last result."
    times = []
    for _ in range(repeat):
        start = perf_counter()
        out = work(*args)
        times.append(perf_counter() - start)
    return statistics.median(times), out


def make_run(folder):
    "An untrained model of the paper's two backbones, 224 px."
    from cesm_nb.settings import TrainConfig
    from cesm_nb.train import fit
    return fit(TrainConfig(
        run_dir=str(folder/'run'), protocol='clinical', phantom_patients=16, phantom_signal=2., image_size=224, epochs=1, batch_size=4,
        mixed_precision='no', device='cpu')).run_dir


def make_files(folder):
    "Two views of a breast, 2560 x 3328 pixels of 12 bits in 16, as a scanner writes them."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
    import cv2
    import numpy as np
    from test_dicom import make, write
    from cesm_nb.phantom import draw_image, plan_phantom
    breast, out = plan_phantom(12, seed=0).query("side == 'L'").iloc[0], []
    for view in ('CC', 'MLO'):
        small = draw_image(breast, view, 'CM', size_px=800)[0]
        image = np.zeros((3328, 2560), np.uint8)
        scale = min(3000/small.shape[0], 1800/small.shape[1])
        large = cv2.resize(small, None, fx=scale, fy=scale)
        image[150:150 + large.shape[0], :large.shape[1]] = large
        out.append(write(make(image, ViewPosition=view, ImageLaterality='L'), folder/f'{view}.dcm'))
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--run', help='run or exported folder; default: one is made')
    ap.add_argument('--cases', type=int, default=100)
    ap.add_argument('--repeat', type=int, default=5)
    o = ap.parse_args()
    start = 'import sys; from time import perf_counter; t = perf_counter(); import cesm_nb.predict, pydicom; print(perf_counter() - t)'
    imports = float(subprocess.run([sys.executable, '-c', start], capture_output=True, text=True, check=True).stdout)
    import torch
    from cesm_nb.ask import ask, prepare_case, stack_prepared
    from cesm_nb.batches import assemble
    from cesm_nb.casepage import page_of
    from cesm_nb.dicom import read_case
    from cesm_nb.familiar import doubts
    from cesm_nb.predict import open_experts, predict_case, predict_cases
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        folder = Path(folder)
        run, files = o.run or make_run(folder), make_files(folder)
        open_experts([run]) # makes training.json where it is absent
        opening, experts = clock(1, open_experts, [run])
        member, known = experts[0]
        one = lambda: page_of(case := read_case(files), predict_case(case, experts, anyway=True), experts)
        first, _ = clock(1, one)
        whole, _ = clock(o.repeat, one)
        read, case = clock(o.repeat, read_case, files)
        prepare, ready = clock(o.repeat, prepare_case, case, member)
        network, _ = clock(o.repeat, ask, member, [ready])
        doubt = clock(o.repeat, doubts, member, known, [ready], [case.side])[0] if known else float('nan')
        page, _ = clock(o.repeat, page_of, case, predict_case(case, experts, anyway=True), experts)
        x, real = (t := stack_prepared([ready])).views/255, t.real
        x = assemble(x, t.rows).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            member.net(x, real)
            bare, _ = clock(4*o.repeat, member.net, x, real)
        network, _ = clock(4*o.repeat, ask, member, [ready])
        cases = [(files, dict(name=f'case {i}')) for i in range(o.cases)]
        many, _ = clock(1, lambda: predict_cases(cases, experts, folder/'out', anyway=True))
        quick, _ = clock(1, lambda: predict_cases(cases, experts, folder/'out', anyway=True, pages=False))
    print(f'{torch.get_num_threads()} threads; imports {imports:.2f} s, opening the model {opening:.2f} s, both once; first case {first:.2f} s')
    print(f'DICOM to page {whole:.2f} s: read {read:.2f}, prepare {prepare:.2f}, network {network:.3f}, doubts {doubt:.3f}, page {page:.2f}')
    print(f'prediction alone {network*1000:.1f} ms, bare forward pass {bare*1000:.1f} ms: ratio {network/bare:.2f}')
    print(f'{o.cases} cases: {o.cases/many:.2f} per second with pages, {o.cases/quick:.2f} without')


if __name__ == '__main__': main()
