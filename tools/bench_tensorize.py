"""Time tensorisation against decoding alone and against a plain script, on full-size JPEGs.

usage: python tools/bench_tensorize.py --data FULLSIZE [--rounds 5] [--peer SCRIPT]
First the tensors are compared with a plain reference, then the contestants take turns; a ratio is
the median over rounds.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import simplejpeg

from cesm_nb.imaging.decode import resize_area
from cesm_nb.roi import fit_tiles, outline
from cesm_nb.core.settings import TensorConfig
from cesm_nb.data import read_dataset
from cesm_nb.tensorize import list_tasks, read_tensor, save_tensors, tensor_name, tensor_settings


def reference_view(
    view:dict, # path, geometries, original_px as in a task
    s:dict, # from `tensor_settings`
) -> np.ndarray: # (S, S) float32 in [0, 1]
    "Make one view the plain way: OpenCV only, masks of the whole image at its original size."
    image = cv2.imread(view['path'], cv2.IMREAD_GRAYSCALE)
    out, (h, w) = image.copy(), image.shape
    for g in view['geometries']:
        points = outline(g)*np.array(image.shape[::-1])/view['original_px']
        sixteenths = np.round(points*16).astype(np.int32)
        mask = cv2.fillPoly(np.zeros_like(image), [sixteenths], 1, shift=4)
        x0, y0 = np.maximum(np.floor(points.min(0)), 0).astype(int)
        x1, y1 = np.ceil(points.max(0)).astype(int) + 1
        if x0 >= w or y0 >= h or x1 <= 0 or y1 <= 0:
            continue # outside the image: OpenCV would divide by the size of an empty box
        box = np.s_[y0:y1, x0:x1]
        clip, tiles = fit_tiles(image[box].shape, s['clahe_clip'], s['clahe_tiles'])
        grid = [min(tiles, n) for n in image[box].shape[::-1]]
        enhanced = cv2.createCLAHE(clip, grid).apply(image[box].copy())
        out[box] = np.where(mask[box] > 0, enhanced, out[box])
    return cv2.resize(out, (s['image_size'],)*2, interpolation=cv2.INTER_AREA)/np.float32(255)


def largest_difference(
    tasks:list, # from `make_tasks`
    settings:dict, # from `tensor_settings`
    folder:Path, # of `save_tensors`
) -> float: # in [0, 1]
    "Compare each existing view with the reference."
    worst = 0.
    for t in tasks:
        x = read_tensor(folder/tensor_name(t['patient_id'], t['side']))['x'].numpy()
        gaps = [x[i] - reference_view(v, settings) for i, v in enumerate(t['views']) if v]
        worst = max(worst, *(float(np.abs(g).max()) for g in gaps))
    return worst


def seconds(job):
    "Wall-clock seconds of one call."
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def reduced_decoding(
    files:list, # paths of JPEGs
    size_px:int=224, # side of a view
) -> tuple: # (seconds over those in full, mean and largest difference after resizing, grey levels)
    "Compare decoding at half scale, which JPEG allows, with decoding in full: time and images."
    data = [Path(f).read_bytes() for f in files]
    sizes = [simplejpeg.decode_jpeg_header(d)[:2] for d in data]
    full = lambda d, s: simplejpeg.decode_jpeg(d, 'GRAY')[..., 0]
    def half(d, s):
        least = dict(min_height=s[0] // 2, min_width=s[1] // 2, min_factor=1)
        return simplejpeg.decode_jpeg(d, 'GRAY', **least)[..., 0]
    pairs = list(zip(data, sizes))
    ratio = median(seconds(lambda: half(*p))/seconds(lambda: full(*p)) for p in pairs)
    gaps = [cv2.absdiff(*(resize_area(f(*p), size_px) for f in (half, full))) for p in pairs]
    return ratio, float(np.mean(gaps)), int(np.max(gaps))


def contestants(tasks, settings, root, peer):
    "Return the contestants: name -> function that returns images per second."
    files = [v['path'] for t in tasks for v in t['views'] if v]
    def ours(n_jobs):
        with tempfile.TemporaryDirectory() as d:
            return len(files)/seconds(lambda: save_tensors(tasks, settings, d, n_jobs))
    def plain():
        with tempfile.TemporaryDirectory() as d:
            command = [sys.executable, peer, root, d]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)['images_per_s']
    read = lambda: [cv2.imread(f, cv2.IMREAD_GRAYSCALE).size for f in files] # keeps no image
    decode = lambda: len(files)/seconds(read)
    out = {'decode only': decode, 'one process': lambda: ours(1), 'two processes': lambda: ours(2)}
    return out | ({'peer': plain} if peer else {})


def main():
    "Print equality, rates, ratios and memory."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--data', required=True, help='full-size images in the TCIA layout')
    ap.add_argument('--rounds', type=int, default=5, help='turns of each contestant')
    ap.add_argument('--peer', help='script to compare with: called with the data and an empty '
                    'folder, it prints JSON with images_per_s')
    a = ap.parse_args()
    if a.peer and not Path(a.peer).is_file():
        sys.exit(f'bench_tensorize: --peer {a.peer} is not a file')
    cv2.setNumThreads(1)
    cfg = TensorConfig(data_root=a.data, image_size=224)
    start = time.perf_counter()
    data = read_dataset(cfg.data_root)
    settings, tasks = tensor_settings(cfg, data), list_tasks(cfg, data)
    files = [v['path'] for t in tasks for v in t['views'] if v]
    print(f'{len(files)} images of {len(tasks)} breasts; '
          f'sheet, regions and headers read in {time.perf_counter() - start:.2f} s')
    with tempfile.TemporaryDirectory() as d:
        save_tensors(tasks, settings, d)
        gap = 255*largest_difference(tasks, settings, Path(d))
        print(f'largest difference from the plain reference: {gap:.3f} of 255')
        size = sum(f.stat().st_size for f in Path(d).glob('*.pt'))/len(files)
    with tempfile.TemporaryDirectory() as d:
        start_up = seconds(lambda: save_tensors(tasks, settings, d, 2)) # and warm the processes
    jobs = contestants(tasks, settings, a.data, a.peer)
    turns = [{k: rate() for k, rate in jobs.items()} for _ in range(a.rounds)]
    middle = {k: median(t[k] for t in turns) for k in jobs}
    for k, rate in middle.items(): print(f'{k:14s} {rate:7.1f} images/s')
    for k, base in [('one process', 'decode only'), ('one process', 'peer'),
                    ('two processes', 'one process')]:
        if base in jobs: print(f'{k} / {base}: {median(t[k]/t[base] for t in turns):.2f}')
    jpegs = [f for f in files if f.lower().endswith(('.jpg', '.jpeg'))][:50]
    if jpegs:
        ratio, mean, worst = reduced_decoding(jpegs)
        print(f'decoding at half scale, not used: {ratio:.2f} x the time of full decoding, '
              f'{mean:.2f} grey levels off on average, {worst} at most')
    hours = 1e5/middle['one process']/3600
    print(f'100,000 images: {hours:.2f} core-hours and {1e5*size/2**30:.0f} GiB of tensors; '
          f'two processes start in {start_up:.1f} s, once per run')
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    own, other = (resource.getrusage(w).ru_maxrss/2**10 for w in who)
    print(f'peak memory: {own:.0f} MiB this process, '
          f'{other:.0f} MiB the largest other one (peer or worker)')


if __name__ == '__main__': main()
