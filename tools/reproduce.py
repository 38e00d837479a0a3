"""Run chapters 00 to 05 through papermill, from data or a phantom to the paper's table, into one run folder.

usage: python tools/reproduce.py [--data FOLDER] [--protocol paper|clinical] [--run-dir RUN] [--set KEY=VALUE ...]
"""
import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import papermill as pm
import yaml
from papermill.exceptions import PapermillExecutionError

from cesm_nb.tables import banner, to_markdown
from cesm_nb.tensorize import prepare
from cesm_nb.settings import TrainConfig, make_config
from cesm_nb.train import check_config

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ('00_data', '01_roi_clahe', '02_tensorize', '04_train_colab_t4', '05_eval_and_figures')


def read_settings(
    data:str, # data set folder; empty: a phantom
    protocol:str, # 'paper' or 'clinical'
    run_dir:str, # run folder; empty: named after data and protocol
    changes:list, # 'key=value', values as in YAML
) -> TrainConfig:
    "Gather the settings of a run; raise ValueError where a key is unknown or a value cannot serve, before anything runs."
    file = ROOT/'configs'/(f'{protocol}.yaml' if data else 'smoke.yaml')
    if not file.exists(): raise ValueError(f"protocol {protocol!r} has no {file}: use 'paper' or 'clinical'")
    settings = yaml.safe_load(file.read_text()) | dict(
        protocol=protocol, data_root=str(Path(data).expanduser().resolve()) if data else '',
        run_dir=str(Path(run_dir or ROOT/'runs'/f"{'real' if data else 'phantom'}-{protocol}").resolve()))
    for change in changes:
        key, equals, value = change.partition('=')
        if not equals: raise ValueError(f'{change!r} is no setting: write KEY=VALUE')
        settings[key] = yaml.safe_load(value)
    cfg = make_config(settings)
    check_config(cfg)
    return cfg


def run_chapter(
    name:str, # notebook without suffix
    cfg:TrainConfig, # prepared settings; the chapter takes those it has parameters for
):
    "Execute one notebook; the executed copy goes to the run folder."
    out = Path(cfg.run_dir)/'notebooks'/f'{name}.ipynb'
    out.parent.mkdir(parents=True, exist_ok=True)
    notebook = ROOT/'nbs'/f'{name}.ipynb'
    known = pm.inspect_notebook(str(notebook))
    if not known: raise ValueError(f'{notebook} has no cell tagged `parameters`: papermill would run it with its defaults')
    settings = {k: v for k, v in asdict(cfg).items() if k in known}
    live = dict(stdout_file=sys.stdout, stderr_file=sys.stderr) if name.startswith('04') else {}
    pm.execute_notebook(str(notebook), str(out), settings, cwd=str(ROOT), kernel_name='python3', progress_bar=False,
                        extra_arguments=['--log-level=40'], **live)


def tell(
    run_dir:Path, # run folder after chapter 05
) -> str: # several lines of text
    "Table 1 as chapter 05 wrote it, what it is worth, and where the rest is."
    line = f"*** {banner(json.loads((run_dir/'config.json').read_text()))} ***"
    table = to_markdown(pd.read_csv(run_dir/'tables'/'table1.csv', index_col=0))
    figures = [f'figure: {f}' for f in sorted((run_dir/'figures').glob('*.png'))]
    return '\n'.join([line, table, line, *figures, f"report: {run_dir/'report.html'}"])


def main():
    "Run the chapters, print the table, say what it is worth."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--data', default='', help='folder in the TCIA layout; empty: a phantom')
    ap.add_argument('--protocol', default='paper', help='paper or clinical')
    ap.add_argument('--run-dir', default='', help='empty: runs/<phantom or real>-<protocol>')
    ap.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='fields of TrainConfig')
    a = ap.parse_args()
    logging.getLogger('papermill').setLevel(logging.ERROR)
    try:
        cfg = prepare(read_settings(a.data, a.protocol, a.run_dir, a.set))
        cfg = replace(cfg, run_dir=str(Path(cfg.run_dir).resolve()), tensor_dir=str(Path(cfg.tensor_dir).resolve()))
        print(f"run folder {cfg.run_dir}\ndata {cfg.data_root}{'' if a.data else ' (PHANTOM, made up)'}", flush=True)
        for i, name in enumerate(CHAPTERS, 1):
            print(f'[{i}/{len(CHAPTERS)}] chapter {name}', flush=True)
            run_chapter(name, cfg)
        print(tell(Path(cfg.run_dir)))
    except PapermillExecutionError as e: sys.exit(f'chapter stopped: {e.ename}: {e.evalue}\nits notebook is in {cfg.run_dir}/notebooks')
    except (ValueError, OSError) as e: sys.exit(f'{type(e).__name__}: {e}')


if __name__ == '__main__': main()
