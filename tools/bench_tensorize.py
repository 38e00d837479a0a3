"""Measure tensorisation against decoding alone and against a plain script, on full-size JPEGs, all in one run.

usage: python tools/bench_tensorize.py --data FULLSIZE [--rounds 5] [--peer SCRIPT]
First the tensors are held against a plain reference, then the contestants take turns; a ratio is the median over rounds.
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
    "Make one view the obvious way: OpenCV only, whole-image masks, no short cuts; an image has its original size."
    image = cv2.imread(view['path'], cv2.IMREAD_GRAYSCALE)
    out, (h, w) = image.copy(), image.shape
    for g in view['geometries']:
        points = outline(g)*np.array(image.shape[::-1])/view['original_px']
        mask = cv2.fillPoly(np.zeros_like(image), [np.round(points*16).astype(np.int32)], 1,
                            shift=4)
        (x0, y0), (x1, y1) = np.maximum(np.floor(points.min(0)),
                                        0).astype(int), np.ceil(points.max(0)).astype(int) + 1
        if x0 >= w or y0 >= h or x1 <= 0 or y1 <= 0:
            continue # outside the image: OpenCV would divide by a box without a pixel
        box = np.s_[y0:y1, x0:x1]
        clip, tiles = fit_tiles(image[box].shape, s['clahe_clip'], s['clahe_tiles'])
        grid = [min(tiles, n) for n in image[box].shape[::-1]]
        out[box] = np.where(mask[box] > 0,
                            cv2.createCLAHE(clip, grid).apply(image[box].copy()), out[box])
    return cv2.resize(out, (s['image_size'],)*2, interpolation=cv2.INTER_AREA)/np.float32(255)


def largest_difference(
    tasks:list, # from `make_tasks`
    settings:dict, # from `tensor_settings`
    folder:Path, # of `save_tensors`
) -> float: # in [0, 1]
    "Hold each view that is there against the reference."
    worst = 0.
    for t in tasks:
        x = read_tensor(folder/tensor_name(t['patient_id'], t['side']))['x'].numpy()
        views = [(x[i], v) for i, v in enumerate(t['views']) if v]
        worst = max(worst, *(float(np.abs(c - reference_view(v, settings)).max())
                             for c, v in views))
    return worst


def seconds(job):
    "Wall-clock seconds of one call."
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def reduced_decoding(
    files: list, # paths of JPEGs
    size_px: int = 224, # side of a view
) -> tuple: # (its seconds over those of full decoding, mean and largest difference of the resized images in grey levels)
    "Decode at half scale, which JPEG allows, and in full: what would be saved and what it would change."
    data = [Path(f).read_bytes() for f in files]
    sizes = [simplejpeg.decode_jpeg_header(d)[:2] for d in data]
    full = lambda d, s: simplejpeg.decode_jpeg(d, 'GRAY')[..., 0]
    half = lambda d, s: simplejpeg.decode_jpeg(d, 'GRAY', min_height=s[0] // 2, min_width=s[1] // 2,
                                               min_factor=1)[..., 0]
    ratio = median(
        seconds(lambda: half(d, s))/seconds(lambda: full(d, s)) for d, s in zip(data, sizes))
    gaps = [
        cv2.absdiff(*(resize_area(decode(d, s), size_px) for decode in (half, full)))
        for d, s in zip(data, sizes)
    ]
    return ratio, float(np.mean(gaps)), int(np.max(gaps))


def contestants(tasks, settings, root, peer):
    "What takes turns: name -> function that returns images a second."
    files = [v['path'] for t in tasks for v in t['views'] if v]
    def ours(n_jobs):
        with tempfile.TemporaryDirectory() as d:
            return len(files)/seconds(lambda: save_tensors(tasks, settings, d, n_jobs))
    def plain():
        with tempfile.TemporaryDirectory() as d:
            out = subprocess.run([sys.executable, peer, root, d], check=True, capture_output=True,
                                 text=True).stdout
        return json.loads(out)['images_per_s']

    decode = lambda: len(files)/seconds(
        lambda: [cv2.imread(f, cv2.IMREAD_GRAYSCALE).size for f in files]) # keep no image
    return {
        'decode only': decode, 'one process': lambda: ours(1), 'two processes': lambda: ours(2)
    } | ({'peer': plain} if peer else {})


def main():
    "Print equality, rates, ratios and memory."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--data', required=True, help='full-size images in the TCIA layout')
    ap.add_argument('--rounds', type=int, default=5, help='turns of each contestant')
    ap.add_argument('--peer', help='script to compare with: called with the data and an empty '
                    'folder, it prints JSON with images_per_s')
    a = ap.parse_args()
    cv2.setNumThreads(1)
    cfg = TensorConfig(data_root=a.data, image_size=224)
    start = time.perf_counter()
    data = read_dataset(cfg.data_root)
    settings, tasks = tensor_settings(cfg, data), list_tasks(cfg, data)
    n = sum(v is not None for t in tasks for v in t['views'])
    print(
        f'{n} images of {len(tasks)} breasts; sheet, regions and headers read in {time.perf_counter() - start:.2f} s'
    )
    with tempfile.TemporaryDirectory() as d:
        save_tensors(tasks, settings, d)
        print(
            f'largest difference from the plain reference: {255*largest_difference(tasks, settings, Path(d)):.3f} of 255'
        )
        size = sum(f.stat().st_size for f in Path(d).glob('*.pt'))/n
    with tempfile.TemporaryDirectory() as d:
        start_up = seconds(lambda: save_tensors(tasks, settings, d, 2)) # and warm the processes
    if a.peer and not Path(a.peer).is_file():
        sys.exit(f'bench_tensorize: --peer {a.peer} is no file')
    turns = [{k: f()
              for k, f in contestants(tasks, settings, a.data, a.peer).items()}
             for _ in range(a.rounds)]
    for k in turns[0]: print(f'{k:14s} {median(t[k] for t in turns):7.1f} images/s')
    for k, base in [('one process', 'decode only'), ('one process', 'peer'),
                    ('two processes', 'one process')]:
        if base in turns[0]: print(f'{k} / {base}: {median(t[k]/t[base] for t in turns):.2f}')
    files = [
        v['path'] for t in tasks
        for v in t['views'] if v and v['path'].lower().endswith(('.jpg', '.jpeg'))
    ][:50]
    if files:
        print(
            'decoding at half scale, not used: {:.2f} x the time of full decoding, {:.2f} grey levels off on average, {} at most'
            .format(*reduced_decoding(files)))
    hours = 1e5/median(t['one process'] for t in turns)/3600
    print(
        f'100,000 images: {hours:.2f} core-hours and {1e5*size/2**30:.0f} GiB of tensors; two processes start in {start_up:.1f} s, once per run'
    )
    peak = [
        resource.getrusage(w).ru_maxrss/2**10
        for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(
        f'peak memory: {peak[0]:.0f} MiB this process, {peak[1]:.0f} MiB the largest other one (peer or worker)'
    )


if __name__ == '__main__': main()
