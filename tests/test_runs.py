"Across chapters: papermill, splits made elsewhere, same seed, resume, commands, cesm_reproduce."
import json
import re
import subprocess
import sys
from ast import literal_eval
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import papermill as pm
import pytest
import torch

from cesm_nb.cohort.splits import share_with_contralateral
from cesm_nb.cli import cesm_evaluate, cesm_phantom, cesm_tensorize, cesm_train
from cesm_nb.evaluate import evaluate
from cesm_nb.experiments.reproduce import read_settings
from cesm_nb.core.runs import Run
from cesm_nb.core.settings import make_config
from cesm_nb.train import fit
from conftest import PATIENCE, ROOT, call

BIN = Path(sys.executable).parent
REPRODUCE = 'from cesm_nb.cli import cesm_reproduce; cesm_reproduce()'
SMALLEST = 'lcnet_035' # these tests do not depend on the network
QUICK = dict(image_size=64, epochs=2, batch_size=8, mixed_precision='no', backbones=SMALLEST)


@pytest.fixture
def one_thread():
    "One order of summation, so that numbers are reproducible."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def quick(phantom, tensors, run_dir, **more):
    "A short run on the shared phantom and tensors."
    protocol = more.get('protocol', 'paper')
    roi = more.get('roi_source') or dict(paper='annotation', clinical='breast')[protocol]
    folders = dict(data_root=str(phantom), run_dir=str(run_dir), tensor_dir=str(tensors/roi))
    return fit(make_config(QUICK | folders | more))


def run(*args):
    "Run a command; return its output as text."
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, cwd=ROOT,
                          timeout=PATIENCE)


def test_papermill_from_the_root(phantom, tmp_path):
    "papermill nbs/04_train_colab_t4.ipynb OUT.ipynb -p epochs 1 -p run_dir RUN -p seed 3"
    done = run(BIN/'papermill', 'nbs/04_train_colab_t4.ipynb', tmp_path/'out.ipynb', '-p', 'epochs',
               1, '-p', 'run_dir', tmp_path/'run', '-p', 'seed', 3, '-p', 'data_root', phantom,
               '-p', 'backbones', SMALLEST, '-p', 'image_size', 32, '-k', 'python3')
    assert done.returncode == 0, done.stderr
    _, config, history, predictions = Run.open(tmp_path/'run')
    assert config['settings']['seed'] == 3 and config['phantom'] and len(history) == 1
    assert set(predictions.split) == {'train', 'val', 'test'}
    assert {p.name for p in (tmp_path/'run').iterdir()} >= {
        'config.json', 'splits.csv', 'manifest.csv', 'checkpoints', 'history.csv',
        'predictions.csv', 'tensors'}
    scores = [f'{s}_{k}' for s in ('train', 'val')
              for k in ('loss', 'accuracy', 'f1', 'auc', 'pr_auc')]
    assert list(history) == ['epoch', 'lr'] + scores


def test_split_made_elsewhere(phantom, tensors, tmp_path):
    "Exactly the file's test breasts are tested, and none of their patients is in training."
    quick(phantom, tensors, tmp_path/'first', epochs=1)
    breasts = pd.read_csv(tmp_path/'first'/'manifest.csv')[['patient_id', 'side']]
    patients = sorted(breasts.patient_id.unique())
    part = dict(zip(patients, ['test', 'val', 'train', 'train', 'train']*len(patients)))
    mine = breasts.assign(split=breasts.patient_id.map(part)).sample(frac=1, random_state=0)
    mine.to_csv(tmp_path/'my.csv', index=False)
    ran = quick(phantom, tensors, tmp_path/'mine', epochs=1, splits_csv=str(tmp_path/'my.csv'))
    def named(t, split):
        rows = t.loc[t.split == split, ['patient_id', 'side']]
        return set(rows.itertuples(index=False, name=None))
    assert named(ran.predictions, 'test') == named(mine, 'test')
    patients = lambda split: set(ran.predictions.patient_id[ran.predictions.split == split])
    assert not patients('test') & patients('train') and not patients('test') & patients('val')
    mine.iloc[3:].to_csv(tmp_path/'short.csv', index=False)
    lost = [f'P{p}_{s}' for p, s in mine.iloc[:3][['patient_id', 'side']].itertuples(index=False)]
    with pytest.raises(ValueError, match='does not cover 3 of') as e:
        quick(phantom, tensors, tmp_path/'short', splits_csv=str(tmp_path/'short.csv'))
    assert all(name in str(e.value) for name in lost)
    assert not (tmp_path/'short'/'config.json').exists() # no partial files


def test_protocols_use_their_split_unit(phantom, tensors, tmp_path):
    sources = dict(paper='annotation', clinical='breast')
    for protocol, shared in [('paper', True), ('clinical', False)]:
        ran = quick(phantom, tensors, tmp_path/protocol, protocol=protocol, epochs=1)
        assert (share_with_contralateral(ran.predictions) > 0) is shared
        assert ran.config['switches']['roi_source'] == sources[protocol]
        assert ran.config['switches']['mask_missing_views'] is (protocol == 'clinical')
    one = quick(phantom, tensors, tmp_path/'one', protocol='paper', split_unit='patient',
                epochs=1) # only one switch
    assert share_with_contralateral(one.predictions) == 0
    assert one.config['switches']['roi_source'] == 'annotation'


def test_same_seed_gives_same_numbers(phantom, tensors, tmp_path, one_thread):
    for name in ('a', 'b'): quick(phantom, tensors, tmp_path/name, seed=5)
    other = quick(phantom, tensors, tmp_path/'c', seed=6)
    for f in ('history.csv', 'predictions.csv', 'splits.csv', 'checkpoints/best.safetensors'):
        assert (tmp_path/'a'/f).read_bytes() == (tmp_path/'b'/f).read_bytes(), f
    assert not other.history.equals(pd.read_csv(tmp_path/'a'/'history.csv'))


def test_resume_is_exact(phantom, tensors, tmp_path, one_thread):
    "Stopped after two epochs and resumed to four: identical to an uninterrupted run."
    quick(phantom, tensors, tmp_path/'whole', epochs=4)
    quick(phantom, tensors, tmp_path/'cut', epochs=2)
    quick(phantom, tensors, tmp_path/'cut', epochs=4)
    for f in ('history.csv', 'predictions.csv', 'checkpoints/best.safetensors'):
        assert (tmp_path/'whole'/f).read_bytes() == (tmp_path/'cut'/f).read_bytes(), f
    with pytest.raises(ValueError, match='lr=0.0001 there, 0.01 expected'):
        quick(phantom, tensors, tmp_path/'cut', lr=.01)


def test_non_finite_loss_stops(phantom, tensors, tmp_path):
    quick(phantom, tensors, tmp_path/'run', epochs=1)
    kept = (tmp_path/'run'/'checkpoints'/'best.safetensors').read_bytes()
    state = torch.load(tmp_path/'run'/'checkpoints'/'last'/'state.pt', weights_only=True)
    state['model']['head.4.bias'] += float('nan')
    torch.save(state, tmp_path/'run'/'checkpoints'/'last'/'state.pt')
    message = r'loss is nan at epoch 2, batch 1 of \d+: lower lr'
    with pytest.raises(FloatingPointError, match=message):
        quick(phantom, tensors, tmp_path/'run', epochs=2)
    assert (tmp_path/'run'/'checkpoints'/'best.safetensors').read_bytes() == kept


def test_folds_cover_each_breast_once(phantom, tensors, tmp_path):
    fold = lambda k: quick(phantom, tensors, tmp_path/f'{k}', protocol='clinical', n_folds=3,
                           fold=k, epochs=1)
    folds = [fold(k).run_dir for k in range(3)]
    found = evaluate(folds, tmp_path/'out', 200)
    assert len(found['test']) == len(pd.read_csv(folds[0]/'manifest.csv'))
    assert all(f.exists() for f in found['figures'])


def test_commands(tmp_path):
    "The console scripts, one after the other, on a phantom of their own."
    made = call(cesm_phantom, '--root', tmp_path/'p', '--n-patients', 24, '--size-px', 120,
                '--no-progress')
    assert made.returncode == 0 and 'PHANTOM' in made.stdout
    common = ('--data-root', tmp_path/'p', '--run-dir', tmp_path/'run', '--image-size', 32)
    made = run(BIN/'cesm_tensorize', *common)
    assert made.returncode == 0 and 'breasts (PHANTOM)' in made.stdout, made.stderr
    trained = run(BIN/'cesm_train', *common, '--epochs', 1, '--backbones', SMALLEST)
    assert trained.returncode == 0, trained.stderr
    epoch, output, _ = trained.stdout.splitlines() # in a log: a line per epoch, then the result
    assert epoch.startswith('epoch 1/1: train_loss') and output.startswith('PHANTOM, test n=')
    done = call(cesm_evaluate, tmp_path/'run', '--n-draws', 200)
    assert done.returncode == 0, done.stderr
    assert '*** PHANTOM' in done.stdout and 'Accuracy' in done.stdout, done.stderr
    assert len(list((tmp_path/'run'/'figures').glob('*.svg'))) == 9
    assert (tmp_path/'run'/'report.html').exists()
    for args, message in [
            ((cesm_train, '--epocs', 3), 'epocs'),
            ((cesm_train, *common, '--lr', -1), 'cesm_train: lr=-1.0 is not above 0'),
            ((cesm_evaluate, tmp_path/'p'), "cesm_evaluate: "),
            ((cesm_tensorize, '--data-root', tmp_path/'run'), 'lacks the annotation sheet')]:
        rejected = call(*args)
        assert rejected.returncode != 0 and message in rejected.stdout + rejected.stderr, args
        assert 'Traceback' not in rejected.stderr


def test_reproduce_runs_all_chapters(tmp_path):
    "`make reproduce` on a small phantom: all chapters, the table, the banner, the figures."
    done = run(sys.executable, '-c', REPRODUCE, '--protocol', 'clinical', '--run-dir', tmp_path/'r',
               '--set', 'phantom_patients=24', 'epochs=1', 'image_size=32', f'backbones={SMALLEST}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('*** PHANTOM - made-up images') == 2 and 'AUC-ROC' in done.stdout
    assert 'IProgress' not in done.stdout + done.stderr and '0.9676' not in done.stdout
    assert done.stdout.splitlines()[-1] == f'open {tmp_path}/r/report.html in a browser'
    figures = [Path(line.removeprefix('figure: ')) for line in done.stdout.splitlines()
               if line.startswith('figure: ')]
    assert len(figures) == 9 and all(f.stat().st_size > 5000 for f in figures)
    assert {f.stem for f in (tmp_path/'r'/'notebooks').iterdir()} == {
        '00_data', '01_roi_clahe', '02_tensorize', '04_train_colab_t4', '05_eval_and_figures'}
    assert json.loads((tmp_path/'r'/'metrics.json').read_text())['phantom'] is True
    for f in (tmp_path/'r'/'notebooks').iterdir(): # without the chapter's examples and tests
        nb = json.loads(f.read_text())
        assert nb['metadata']['papermill']['input_path'] == str(f)
        assert not [c for c in nb['cells'] if 'test_fail(lambda: read_' in ''.join(c['source'])]


def test_reproduce_rejects_before_running(tmp_path):
    done = run(sys.executable, '-c', REPRODUCE, '--run-dir', tmp_path/'r', '--set', 'epocs=3')
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    assert "unknown parameter 'epocs': did you mean epochs?" in done.stderr
    assert not (tmp_path/'r').exists()


@pytest.mark.parametrize('change, message', [
    ('epocs=3', 'unknown parameter'), ('epochs=three', "epochs='three' is not of type int"),
    ('epochs', 'write KEY=VALUE'), ('lr=-1', 'lr=-1 is not above 0'),
    ('protocol=clinic', "protocol='clinic' is not one of 'paper', 'clinical'")])
def test_reproduce_reads_settings(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings('', 'paper', '', [change])
    assert read_settings('', 'clinical', '', ['epochs=3']).epochs == 3


def test_papermill_parameters_of_all_chapters_are_settings():
    "Same names and same defaults."
    known, with_parameters = asdict(make_config({})), []
    notebooks = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
                 if p.stem != 'quickstart'] # which has a form of its own
    for notebook in notebooks:
        parameters = pm.inspect_notebook(str(notebook))
        written = {k: literal_eval(p['default']) for k, p in parameters.items()}
        assert written == {k: known.get(k, 'no setting') for k in written}, notebook
        if written: with_parameters.append(notebook.stem)
    both_folders = {'04_train_colab_t4', 'reporting.saliency'}
    assert both_folders <= set(with_parameters), with_parameters
