"""Time training and inference against a plain PyTorch loop, in turn, and print ratios; time the
precision that `auto` chooses beside float32.

usage: python tools/bench_train.py --peer PEER.py [--size 224] [--batch 16] [--steps 6] [--rounds 3]
           [--device auto]
PEER.py takes a folder of {'x': (3,S,S), 'y': int} files, --steps, --batch and --device, and prints
{"samples_per_s": ...}. The timed steps include loading and augmentation, on both sides. The
breasts are those of a phantom.
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

from cesm_nb.core.settings import TensorConfig, make_config
from cesm_nb.tensorize import prepare, read_manifest, read_tensor, tensorize
from cesm_nb.training.dataset import read_breasts
from cesm_nb.train import Training, build_network, check_config, predict, train_epoch


def make_breasts(
    folder:Path, # where to
    size:int, # side in pixels
    n_breasts:int, # at least
) -> tuple: # (our tensor folder, the peer's)
    "Make a phantom's tensors, and the same in the peer's format."
    n_patients = max(12, n_breasts*2 // 3)
    cfg = prepare(TensorConfig(run_dir=str(folder), image_size=size, phantom_patients=n_patients))
    tensorize(cfg)
    (folder/'peer').mkdir()
    for f in Path(cfg.tensor_dir).glob('*.pt'):
        d = read_tensor(f)
        torch.save(dict(x=d['x'], y=d['label']), folder/'peer'/f.name)
    return Path(cfg.tensor_dir), folder/'peer'


def ours(
    folder:Path, # tensor folder
    batch:int, # breasts per step
    steps:int, # timed steps
    device:str, # 'auto', 'cpu' or 'cuda'
    precision:str='auto', # mixed precision
) -> dict: # samples/s, latency of one breast in ms and over the bare forward pass, memory in MB
    "Time our training steps and our inference in this process."
    cfg = make_config(dict(
        batch_size=batch, device=device, epochs=1, mixed_precision=precision))
    switches, device, dtype = check_config(cfg)
    data = read_breasts(folder, read_manifest(folder)).to(device)
    t = Training(build_network(vars(cfg), switches), cfg, device, dtype)
    n, needed = len(data.label), batch*steps
    index = torch.arange(n).repeat(1 + needed // n)[:needed].to(device)
    weight = torch.ones(3, device=device)
    step = lambda which: train_epoch(t, data, which, weight, cfg, 1)
    step(index[:batch]) # warm up
    start = time.perf_counter()
    step(index)
    rate = len(index)/(time.perf_counter() - start)
    one = index[:1]
    x = data.views[one].float().div(255)
    x = torch.cat([x, torch.zeros_like(x[:, :1])], 1).contiguous(memory_format=torch.channels_last)
    cast = torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
    def bare():
        with torch.inference_mode(), cast: t.model(x).float().cpu()
    t.model.eval()
    mine, floor = [], []
    for _ in range(30): # in turn, so that a drifting machine affects both
        for call, times in [(lambda: predict(t.model, data, one, dtype), mine), (bare, floor)]:
            start = time.perf_counter()
            call()
            times.append(1000*(time.perf_counter() - start))
    if device.type == 'cuda': memory = torch.cuda.max_memory_allocated()/1e6
    else: memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
    mine, floor = mine[3:], floor[3:] # the first ones warm up
    p50, p95 = statistics.median(mine), statistics.quantiles(mine, n=20)[-1]
    return dict(
        samples_per_s=rate, latency_ms_p50=p50, latency_ms_p95=p95, peak_memory_mb=memory,
        latency_ratio=p50/statistics.median(floor), precision=str(dtype or torch.float32))


def last(*args):
    "Run a script with arguments; the JSON in the last line of its output."
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    "Alternate peer and ours, print each and the median ratio."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--peer', type=Path,
                    help='plain training loop that prints JSON with samples_per_s')
    for name, default in [('size', 224), ('batch', 16), ('steps', 6), ('rounds', 3)]:
        ap.add_argument(f'--{name}', type=int, default=default)
    ap.add_argument('--device', default='auto')
    ap.add_argument('--precision', default='auto', help='of --ours')
    ap.add_argument('--ours', type=Path,
                    help='time ours only, on this tensor folder, and print JSON')
    a = ap.parse_args()
    if a.ours: return print(json.dumps(ours(a.ours, a.batch, a.steps, a.device, a.precision)))
    if not (a.peer and a.peer.is_file()):
        sys.exit(f'bench_train: --peer {a.peer} is not a file: name a plain training loop')
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if a.device == 'auto' else a.device
    common = ('--batch', a.batch, '--steps', a.steps, '--device', device)
    with tempfile.TemporaryDirectory() as d:
        mine, theirs = make_breasts(Path(d), a.size, a.batch*(a.steps + 2))
        rounds, ratios = [], []
        for i in range(1, a.rounds + 1):
            peer = last(a.peer, theirs, *common)['samples_per_s']
            rounds.append(last(__file__, '--ours', mine, *common))
            rate, chosen = rounds[-1]['samples_per_s'], rounds[-1]['precision']
            plain = last(__file__, '--ours', mine, *common, '--precision', 'no')['samples_per_s']
            ratios.append(rate/peer)
            print(f'round {i}: peer {peer:.2f} samples/s, ours {rate:.2f} ({chosen}, chosen by '
                  f'auto), ratio {rate/peer:.2f}; {plain:.2f} in torch.float32', flush=True)
    middle = lambda k: statistics.median(r[k] for r in rounds)
    print(f"{device}, {a.size} px, batch {a.batch}, {rounds[0]['precision']}: "
          f"median ratio {statistics.median(ratios):.2f}; one breast "
          f"p50 {middle('latency_ms_p50'):.1f} ms, p95 {middle('latency_ms_p95'):.1f} ms, "
          f"{middle('latency_ratio'):.2f} x the bare forward pass; "
          f"peak memory {middle('peak_memory_mb'):.0f} MB")


if __name__ == '__main__': main()
