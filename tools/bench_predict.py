"""Time one case from two DICOM files to its page, step by step, and count cases per second.

    python tools/bench_predict.py [--run RUN] [--cases 100] [--repeat 5]

Without --run a run is made on a phantom: the two backbones of the paper, barely trained, 224 px.
The fastest of --repeat measurements counts. Times are given as seconds of the clock / of the
processor, to separate a busy machine from a slow program; the load is printed too. Imports and
loading the model, which happen once, are listed separately. A quarter of the cases is predicted
again without pages."""
import argparse
import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from time import perf_counter, process_time

IMPORTS = '''
from time import perf_counter
start = perf_counter()
import cesm_nb.cases.predict, pydicom
print(perf_counter() - start)
'''


def clock(repeat, work, *args):
    "Least seconds of clock and processor, and the last result."
    walls, cpus = [], []
    for _ in range(repeat):
        start, busy = perf_counter(), process_time()
        out = work(*args)
        walls.append(perf_counter() - start)
        cpus.append(process_time() - busy)
    return (min(walls), min(cpus)), out


def pair(seconds): return f'{seconds[0]:.2f}/{seconds[1]:.2f}'


def time_imports():
    "Seconds until a fresh process has imported what a prediction needs."
    command = [sys.executable, '-c', IMPORTS]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def time_shell(files, folder, repeat):
    "Least seconds of `cesm_predict` in a process of its own, with the released model."
    command = ['cesm_predict', *map(str, files), '--out']
    shell = lambda: subprocess.run(
        [*command, tempfile.mkdtemp(dir=folder)], check=True, capture_output=True)
    return clock(repeat, shell)[0][0]


def make_run(folder):
    "A barely trained model of the paper's two backbones, 224 px."
    from cesm_nb.core.settings import TrainConfig
    from cesm_nb.train import fit
    return fit(TrainConfig(
        run_dir=str(folder/'run'), protocol='clinical', phantom_patients=16, phantom_signal=2.,
        image_size=224, epochs=1, batch_size=4, mixed_precision='no', device='cpu')).run_dir


def make_files(folder, side='L'):
    "Two views of a breast, 2560 x 3328 pixels of 12 bits in 16, as a scanner writes them."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
    import cv2
    import numpy as np
    from test_dicom import make, write
    from cesm_nb.synthetic.phantom import draw_image, plan_phantom
    breast, out = plan_phantom(12, seed=0).query('side == @side').iloc[0], []
    for view in ('CC', 'MLO'):
        small = draw_image(breast, view, 'CM', size_px=800)[0]
        image = np.zeros((3328, 2560), np.uint8)
        scale = min(3000/small.shape[0], 1800/small.shape[1])
        large = cv2.resize(small, None, fx=scale, fy=scale)
        image[150:150 + large.shape[0], :large.shape[1]] = large
        made = make(image, ViewPosition=view, ImageLaterality=side)
        out.append(write(made, folder/f'{side}{view}.dcm'))
    return out


def time_network(member, ready, rounds):
    "Least seconds of the bare forward pass and of a prediction, timed in turn under the same load."
    import torch
    from cesm_nb.cases.prepare import predict_prepared, stack_prepared
    from cesm_nb.training.dataset import assemble
    t = stack_prepared([ready])
    x = assemble(t.views/255, t.rows).contiguous(memory_format=torch.channels_last)
    jobs, times = ((member.net, x, t.real), (predict_prepared, member, [ready])), ([], [])
    with torch.inference_mode():
        member.net(x, t.real)
        for _ in range(rounds):
            for job, found in zip(jobs, times): found.append(clock(1, *job)[0])
    return [tuple(map(min, zip(*found))) for found in times]


def main():
    "Print times and rates."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--run', help='run or exported folder; default: one is made')
    ap.add_argument('--cases', type=int, default=100)
    ap.add_argument('--repeat', type=int, default=5)
    o = ap.parse_args()
    imports = time_imports()
    import torch
    from cesm_nb.cases.prepare import prepare_case
    from cesm_nb.cases.page import compute_saliency, page_of
    from cesm_nb.imaging.dicom import read_case
    from cesm_nb.cases.ood import find_rejections
    from cesm_nb.cases.predict import open_experts, predict_case, predict_cases
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        folder = Path(folder)
        run, files = o.run or make_run(folder), make_files(folder)
        exam = time_shell(files + make_files(folder, 'R'), folder, o.repeat)
        open_experts([run]) # makes training.json where it is absent
        load = os.getloadavg()[0]
        opening, experts = clock(1, open_experts, [run])
        member, known = experts[0]

        def one():
            case = read_case(files)
            return page_of(case, predict_case(case, experts, anyway=True), experts)

        first, _ = clock(1, one)
        whole, _ = clock(o.repeat, one)
        read, case = clock(o.repeat, read_case, files)
        prepare, ready = clock(o.repeat, prepare_case, case, member)
        ood = (float('nan'),)*2
        if known: ood, _ = clock(o.repeat, find_rejections, member, known, [ready], [case.side])
        prediction = predict_case(case, experts, anyway=True)
        maps, _ = clock(o.repeat, compute_saliency, member, ready, 2)
        page, _ = clock(o.repeat, page_of, case, prediction, experts)
        bare, network = time_network(member, ready, 16*o.repeat)
        cases = [(files, dict(name=f'case {i}')) for i in range(o.cases)]
        few, predict = cases[:max(1, o.cases // 4)], predict_cases
        many, _ = clock(1, lambda: predict(cases, experts, folder/'out', anyway=True))
        quick, _ = clock(1, lambda: predict(few, experts, folder/'out', anyway=True, pages=False))
    ms = lambda seconds: f'{seconds[0]*1000:.1f}/{seconds[1]*1000:.1f} ms'
    print(f'{torch.get_num_threads()} threads on {os.cpu_count()} cores, '
          f'load {load:.1f} to {os.getloadavg()[0]:.1f}')
    print(f'exam of four views from the shell to its page, released model: {exam:.2f} s')
    print(f'once: imports {imports:.2f} s, loading the model {pair(opening)} s, '
          f'first case {pair(first)} s')
    print(f'DICOM to page {pair(whole)} s: read {pair(read)}, prepare {pair(prepare)}, '
          f'network {pair(network)}, out-of-distribution checks {pair(ood)}, '
          f'page {pair(page)}, of which maps {pair(maps)}')
    print(f'prediction alone {ms(network)}, bare forward pass {ms(bare)}: '
          f'ratio {network[0]/bare[0]:.2f}/{network[1]/bare[1]:.2f}')
    print(f'{len(cases)} cases with pages: {len(cases)/many[0]:.2f} per second, '
          f'{many[1]/len(cases):.2f} processor seconds each; '
          f'{len(few)} without: {len(few)/quick[0]:.2f}, {quick[1]/len(few):.2f}')


if __name__ == '__main__': main()
