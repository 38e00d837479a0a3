"""Time training and inference against a plain PyTorch loop, alternately in one go, and print ratios.

usage: python tools/bench_train.py --peer PEER.py [--size 224] [--batch 16] [--steps 6] [--rounds 3] [--device auto]
PEER.py takes a folder of {'x': (3,S,S), 'y': int} files, --steps, --batch, --device, and prints {"samples_per_s": ...};
its loader and augmentation are inside the timed steps, and so are ours. The breasts are a phantom's.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from cesm_nb.core.settings import TensorConfig
from cesm_nb.tensorize import prepare, read_tensor, tensorize
from cesm_nb.tensorize import read_manifest
from cesm_nb.training.dataset import read_breasts
from cesm_nb.core.settings import make_config
from cesm_nb.train import check_config
from cesm_nb.train import Training, build_network, predict, train_epoch


def make_breasts(
    folder:Path, # where to
    size:int, # side in pixels
    n_breasts:int, # at least
) -> tuple: # (our tensor folder, the peer's)
    "Make a phantom's tensors, and the same in the peer's format."
    cfg = prepare(
        TensorConfig(run_dir=str(folder), image_size=size,
                     phantom_patients=max(12, n_breasts*2 // 3)))
    tensorize(cfg)
    (folder/'peer').mkdir()
    for f in Path(cfg.tensor_dir).glob('*.pt'):
        d = read_tensor(f)
        torch.save(dict(x=d['x'], y=d['label']), folder/'peer'/f.name)
    return Path(cfg.tensor_dir), folder/'peer'


def ours(
    folder: Path, # tensor folder
    batch: int, # breasts per step
    steps: int, # timed steps
    device: str, # 'auto', 'cpu' or 'cuda'
) -> dict: # samples/s, latency of one breast in ms, its ratio to the bare forward pass, peak memory in MB
    "Time our training steps and our inference in this process."
    cfg = make_config(dict(batch_size=batch, device=device, epochs=1))
    switches, device, dtype = check_config(cfg)
    data = read_breasts(folder, read_manifest(folder)).to(device)
    t = Training(build_network(vars(cfg), switches), cfg, device, dtype)
    index = torch.arange(len(
        data.label)).repeat(1 + batch*steps // len(data.label))[:batch*steps].to(device)
    weight = torch.ones(3, device=device)
    step = lambda which: train_epoch(t, data, which, weight, cfg, 1)
    step(index[:batch]) # warm up
    start = time.perf_counter()
    step(index)
    rate = len(index)/(time.perf_counter() - start)
    one = index[:1]
    x = data.views[one].float().div(255)
    x = torch.cat([x, torch.zeros_like(x[:, :1])], 1).contiguous(memory_format=torch.channels_last)
    def bare():
        with torch.inference_mode(), torch.autocast(device.type, dtype or torch.bfloat16,
                                                    enabled=dtype is not None):
            t.model(x).float().cpu()
    t.model.eval()
    mine, floor = [], []
    for _ in range(30): # in turn, so that a drifting machine hits both
        for call, times in [(lambda: predict(t.model, data, one, dtype), mine), (bare, floor)]:
            start = time.perf_counter()
            call()
            times.append(1000*(time.perf_counter() - start))
    memory = torch.cuda.max_memory_allocated()/1e6 if device.type == 'cuda' else resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss/1e3
    q = statistics.quantiles(mine[3:], n=20)
    return dict(samples_per_s=rate, latency_ms_p50=statistics.median(mine[3:]),
                latency_ms_p95=q[-1],
                latency_ratio=statistics.median(mine[3:])/statistics.median(floor[3:]),
                peak_memory_mb=memory, precision=str(dtype or torch.float32))


def main():
    "Alternate peer and ours, print each and the median ratio."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--peer', type=Path,
                    help='plain training loop that prints JSON with samples_per_s')
    for name, default in [('size', 224), ('batch', 16), ('steps', 6), ('rounds', 3)]:
        ap.add_argument(f'--{name}', type=int, default=default)
    ap.add_argument('--device', default='auto')
    ap.add_argument('--ours', type=Path,
                    help='time ours only, on this tensor folder, and print JSON')
    a = ap.parse_args()
    if a.ours: return print(json.dumps(ours(a.ours, a.batch, a.steps, a.device)))
    if not (a.peer and a.peer.is_file()):
        sys.exit(f'bench_train: --peer {a.peer} is no file: name a plain training loop')
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if a.device == 'auto' else a.device
    last = lambda *args: json.loads(
        subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=True
                       ).stdout.splitlines()[-1])
    common = ('--batch', a.batch, '--steps', a.steps, '--device', device)
    with tempfile.TemporaryDirectory() as d:
        mine, theirs = make_breasts(Path(d), a.size, a.batch*(a.steps + 2))
        rounds = []
        for i in range(a.rounds):
            peer, we = last(a.peer, theirs, *common), last(__file__, '--ours', mine, *common)
            rounds.append((peer['samples_per_s'], we))
            print(
                f"round {i+1}: peer {peer['samples_per_s']:.2f} samples/s, ours {we['samples_per_s']:.2f}, ratio {we['samples_per_s']/peer['samples_per_s']:.2f}",
                flush=True)
    middle = lambda k: statistics.median(w[k] for _, w in rounds)
    ratio = statistics.median(w['samples_per_s']/p for p, w in rounds)
    print(
        f"{device}, {a.size} px, batch {a.batch}, {rounds[0][1]['precision']}: median ratio {ratio:.2f}; one breast "
        f"p50 {middle('latency_ms_p50'):.1f} ms, p95 {middle('latency_ms_p95'):.1f} ms, {middle('latency_ratio'):.2f} x the bare forward pass; "
        f"peak memory {middle('peak_memory_mb'):.0f} MB")


if __name__ == '__main__': main()
