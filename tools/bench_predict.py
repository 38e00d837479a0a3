"""How the time from two DICOM files to a page splits, the share of the network in it, and cases per second.

    python tools/bench_predict.py [--run RUN] [--cases 100] [--repeat 5]

Without --run a run is made: the two backbones of the paper, hardly trained, 224 px, on a phantom. Of --repeat times the least
counts, in seconds of the clock and, after the stroke, of the processor, which tells a busy machine from a slow program: the load
is printed. Imports and opening the model, which happen once, stand apart. A quarter of the cases is done again without pages."""
import argparse
import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from time import perf_counter, process_time


def clock(repeat, work, *args):
    "Least seconds of clock and processor, and the last result."
    walls, cpus = [], []
    for _ in range(repeat):
        start, busy = perf_counter(), process_time()
        out = work(*args)
        walls.append(perf_counter() - start)
        cpus.append(process_time() - busy)
    return (min(walls), min(cpus)), out


def say(seconds): return f'{seconds[0]:.2f}/{seconds[1]:.2f}'


def make_run(folder):
    "An untrained model of the paper's two backbones, 224 px."
    from cesm_nb.core.settings import TrainConfig
    from cesm_nb.train import fit
    return fit(TrainConfig(
        run_dir=str(folder/'run'), protocol='clinical', phantom_patients=16, phantom_signal=2.,
        image_size=224, epochs=1, batch_size=4, mixed_precision='no', device='cpu')).run_dir


def make_files(folder):
    "Two views of a breast, 2560 x 3328 pixels of 12 bits in 16, as a scanner writes them."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
    import cv2
    import numpy as np
    from test_dicom import make, write
    from cesm_nb.synthetic.phantom import draw_image, plan_phantom
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
    start = 'import sys; from time import perf_counter; t = perf_counter(); import cesm_nb.cases.predict, pydicom; print(perf_counter() - t)'
    imports = float(
        subprocess.run([sys.executable, '-c', start], capture_output=True, text=True,
                       check=True).stdout)
    import torch
    from cesm_nb.cases.prepare import predict_prepared, prepare_case, stack_prepared
    from cesm_nb.training.dataset import assemble
    from cesm_nb.cases.page import looked_at, page_of
    from cesm_nb.imaging.dicom import read_case
    from cesm_nb.cases.ood import doubts
    from cesm_nb.cases.predict import open_experts, predict_case, predict_cases
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        folder = Path(folder)
        run, files = o.run or make_run(folder), make_files(folder)
        open_experts([run]) # makes training.json where it is absent
        load = os.getloadavg()[0]
        opening, experts = clock(1, open_experts, [run])
        member, known = experts[0]
        one = lambda: page_of(case := read_case(files), predict_case(case, experts, anyway=True),
                              experts)
        first, _ = clock(1, one)
        whole, _ = clock(o.repeat, one)
        read, case = clock(o.repeat, read_case, files)
        prepare, ready = clock(o.repeat, prepare_case, case, member)
        doubt = clock(o.repeat, doubts, member, known, [ready],
                      [case.side])[0] if known else (float('nan'), )*2
        answer = predict_case(case, experts, anyway=True)
        maps, _ = clock(o.repeat, looked_at, member, ready, 2)
        page, _ = clock(o.repeat, page_of, case, answer, experts)
        t = stack_prepared([ready])
        x = assemble(t.views/255, t.rows).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            member.net(x, t.real)
            turns = [(clock(1, member.net, x, t.real)[0], clock(1, predict_prepared, member,
                                                                [ready])[0])
                     for _ in range(16*o.repeat)]
        bare, network = ((min(w for w, _ in of), min(c for _, c in of))
                         for of in zip(*turns)) # in turns: the load is that of both
        cases, few = ([(files, dict(name=f'case {i}')) for i in range(n)]
                      for n in (o.cases, max(1, o.cases // 4)))
        many, _ = clock(1, lambda: predict_cases(cases, experts, folder/'out', anyway=True))
        quick, _ = clock(
            1, lambda: predict_cases(few, experts, folder/'out', anyway=True, pages=False))
    print(
        f'{torch.get_num_threads()} threads on {os.cpu_count()} cores, load {load:.1f} to {os.getloadavg()[0]:.1f}'
    )
    print(
        f'once: imports {imports:.2f} s, opening the model {say(opening)} s, first case {say(first)} s'
    )
    print(
        f'DICOM to page {say(whole)} s: read {say(read)}, prepare {say(prepare)}, network {say(network)}, doubts {say(doubt)}, '
        f'page {say(page)}, of which maps {say(maps)}')
    print(
        f'prediction alone {network[0]*1000:.1f}/{network[1]*1000:.1f} ms, bare forward pass {bare[0]*1000:.1f}/{bare[1]*1000:.1f} ms: '
        f'ratio {network[0]/bare[0]:.2f}/{network[1]/bare[1]:.2f}')
    print(
        f'{len(cases)} cases with pages: {len(cases)/many[0]:.2f} per second, {many[1]/len(cases):.2f} processor seconds each; '
        f'{len(few)} without: {len(few)/quick[0]:.2f}, {quick[1]/len(few):.2f}')


if __name__ == '__main__': main()
