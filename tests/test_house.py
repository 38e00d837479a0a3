"Notebooks and modules agree, modules import downwards, no patient data is tracked."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cesm_nb.reporting.tables import with_interval
from cesm_nb.core.settings import TrainConfig, check_parameters
from conftest import PATIENCE, ROOT

NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
MODULES = sorted(p for p in (ROOT/'cesm_nb').rglob('*.py') if not p.name.startswith('_'))
BIN = Path(sys.executable).parent


def dotted(path): return '.'.join(path.relative_to(ROOT/'cesm_nb').with_suffix('').parts)


def test_globs_find_all_notebooks_and_modules():
    "Notebooks of both folders and all modules are found; nbdev exports one module per notebook."
    exported = [p for p in NOTEBOOKS if '#| default_exp ' in p.read_text()]
    assert len(exported) == len(MODULES) >= 60
    assert {p.parent.name for p in NOTEBOOKS} == {'nbs', 'api'} and len(
        {p.parent for p in MODULES}) == 14


def claim_of(source):
    "Docstring of a module if it is one line, else ''."
    text = ast.get_docstring(ast.parse(source)) or ''
    return '' if '\n' in text else text


@pytest.mark.parametrize('module', MODULES, ids=dotted)
def test_module_has_a_one_line_docstring(module):
    "The claim in the first cell of its notebook."
    assert claim_of(module.read_text())


def test_module_without_a_one_line_docstring_is_found():
    assert claim_of('"One line"\nx = 1') == 'One line'
    assert [claim_of(s) for s in ('x = 1', '', '"One line\\n\\nand more"')] == ['']*3


def tracked():
    "List files under version control, or those that would be."
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT,
                            capture_output=True, check=True, timeout=PATIENCE)
    return [f for f in listed.stdout.decode().split('\0') if f and (ROOT/f).exists()]


def test_clean_and_export_leave_no_diff(tmp_path):
    copy = tmp_path/'copy'
    for f in tracked():
        (copy/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, copy/f, follow_symlinks=False)
    git = lambda *a: subprocess.run(
        ['git', '-c', 'user.name=t', '-c', 'user.email=t@t', *a], cwd=copy, check=True,
        capture_output=True, text=True, timeout=PATIENCE).stdout
    git('init', '-q'), git('add', '-A'), git('commit', '-qm', 'as it is')
    for command in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([BIN/command], cwd=copy, check=True, capture_output=True, timeout=PATIENCE)
    assert git('status', '--porcelain') == ''
    # the check can fail: a changed exported cell is found
    notebook = copy/'nbs'/'api'/'core.terms.ipynb'
    notebook.write_text(notebook.read_text().replace(
        "VIEWS = ('CC', 'MLO')", "VIEWS = ('MLO', 'CC')"))
    subprocess.run([BIN/'nbdev_export'], cwd=copy, check=True, capture_output=True,
                   timeout=PATIENCE)
    assert 'cesm_nb/core/terms.py' in git('status', '--porcelain')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_no_hidden_training(path):
    "No cell is hidden from nbdev_test; test_quickstart.py runs the form, which ends in a report."
    if path.stem == 'quickstart': return
    source = '\n'.join(c.source for c in nbformat.read(path, 4).cells)
    assert not re.search(r'#\|\s*(eval: false|notest)|skip_exec', source)


RUFF = shutil.which('ruff', path=f'{BIN}{os.pathsep}{os.environ["PATH"]}')


def lint(*args, source=None):
    "Return file, row and code of each fault that ruff finds by the rules in pyproject.toml."
    command = [RUFF, 'check', '--no-cache', '--output-format', 'json', *args]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert done.returncode in (0, 1), done.stderr
    return [(os.path.relpath(fault['filename'], ROOT), fault['location']['row'], fault['code'])
            for fault in json.loads(done.stdout)]


def test_ruff_finds_no_fault():
    assert lint('cesm_nb', 'tests', 'tools', 'nbs', 'setup.py') == []


@pytest.mark.parametrize('name', ['tests/x.py', 'nbs/x.ipynb'])
def test_ruff_finds_planted_faults(name):
    lines = 'import os', f'wide = "{"x"*93}"', 'print(wide, absent)', 'def two(): pass'
    source = '\n'.join([*lines, lines[-1]])
    if name.endswith('.ipynb'): # names hold across cells
        cells = [nbformat.v4.new_code_cell(text) for text in ('!ls\n_exit_code', *lines, lines[-1])]
        source = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    found = lint('--stdin-filename', name, '-', source=source)
    assert {code for *_, code in found} == {'F401', 'E501', 'F821', 'F811'}, found


def test_exported_lines_are_short():
    "The head that nbdev writes does not count."
    found = lint('--config', 'lint.per-file-ignores={}', 'cesm_nb')
    text = {str(m.relative_to(ROOT)): m.read_text() for m in MODULES}
    head = {file: t[:t.index('\n# %% ../')].count('\n') for file, t in text.items()}
    assert [(file, row) for file, row, _ in found if row > head.get(file, row)] == []


ONCE = { # defined in one place only: text -> module
    "'history.csv'": 'core.runs', "'predictions.csv'": 'core.runs', "'splits.csv'": 'core.runs',
    "'status.json'": 'core.runs', "'manifest.csv'": 'core.runs', "f'p_{": 'core.terms',
    "'allow_scratch', 'n_jobs', 'device', 'resume'": 'core.settings',
    "'accuracy', 'precision', 'recall', 'f1', 'auc', 'pr_auc'": 'stats.scores'}


@pytest.mark.parametrize('text', ONCE)
def test_lists_are_defined_once(text):
    found = [dotted(p) for p in MODULES for _ in range(p.read_text().count(text))]
    assert found == [ONCE[text]]


def lint_imports(folder):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PYTHONPATH=str(folder))
    return subprocess.run([BIN/'lint-imports'], cwd=folder, capture_output=True, text=True,
                          timeout=PATIENCE, env=env)


def test_modules_import_only_downwards(tmp_path):
    "The contract of .importlinter; a planted upward import in a copy breaks it."
    shutil.copytree(ROOT/'cesm_nb', tmp_path/'cesm_nb',
                    ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT/'.importlinter', tmp_path)
    kept = lint_imports(tmp_path)
    assert kept.returncode == 0, kept.stdout
    with open(tmp_path/'cesm_nb'/'core'/'terms.py', 'a') as f:
        f.write('\nfrom cesm_nb.train import fit\n')
    broken = lint_imports(tmp_path)
    assert broken.returncode == 1 and 'cesm_nb.core.terms -> cesm_nb.train' in broken.stdout


def test_training_imports_nothing_above_it():
    "Neither the probe, nor modules above training, nor a plotting library."
    code = ("import sys, cesm_nb.train; print(*(m for m in sys.modules "
            "if m.startswith(('cesm_nb', 'matplotlib', 'seaborn'))))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=PATIENCE, check=True)
    loaded = done.stdout.split()
    assert 'cesm_nb.train' in loaded
    packages = ('probe', 'cases', 'leakage', 'experiments')
    assert [m for m in loaded if m.startswith(
        ('matplotlib', 'seaborn', *(f'cesm_nb.{p}' for p in packages)))] == []
    source = (ROOT/'cesm_nb'/'train.py').read_text()
    assert re.findall(r'probe|lesion|\bmate', source, re.I) == []


@pytest.mark.parametrize('module', MODULES, ids=dotted)
def test_package_imports_no_development_tool(module):
    for node in ast.walk(ast.parse(module.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.module
                    and re.match('nbdev|fastcore', node.module))


def test_no_patient_data_is_tracked():
    bad = [f for f in tracked() if re.search(
        r'(^|/)(P\d+_[LR]_(DM|CM)_|runs/)|\.(pt|safetensors|jpe?g|dcm)$', f)]
    assert bad == ['cesm_nb/released/fitted.safetensors'] # the released model: no row of a patient
    big = [f for f in tracked() if (ROOT/f).stat().st_size > 2e6]
    assert big == []
    named = [f for f in tracked() if f.startswith('results/')
             and re.search(rb'P\d+_[LR]', (ROOT/f).read_bytes())]
    assert named == []


AUTHORS = re.compile(r"\.\./shared|'shared'/|/work/(main|shared|pinned)") # folders of the authors


def test_no_author_folder_is_named():
    "CESM_DATA and CESM_WEIGHTS name them; only the authors' CI searches beside the checkout."
    found = [f for f in tracked() if (ROOT/f).is_file()
             and AUTHORS.search((ROOT/f).read_bytes().decode(errors='replace'))]
    assert found == ['.ci/run', 'tests/test_house.py']


CLOCKS = {'time', 'perf_counter', 'process_time', 'monotonic', 'thread_time', 'sleep', 'getrusage',
          'timeit'}
STARTS, WAITS = ({'run', 'call', 'check_call', 'check_output', 'communicate'},
                 {'wait', 'join', 'communicate'})


def hurried(source):
    "Lines of a test that read a clock, sleep, loop without a count, or wait without a bound."
    bad = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.While): bad.append((node.lineno, 'while'))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bad += [(node.lineno, a.name) for a in node.names if a.name in
                    {'time', 'timeit', 'resource'} or getattr(node, 'module', '') == 'time']
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute): continue
        name, owner = node.func.attr, getattr(node.func.value, 'id', '')
        bounded = any(k.arg == 'timeout' for k in node.keywords)
        if owner == 'subprocess' and name in STARTS and not bounded: bad.append((node.lineno, name))
        if name in WAITS and not node.args and not bounded: bad.append((node.lineno, name))
        if name in CLOCKS and owner in ('time', 'timeit', 'resource'):
            bad.append((node.lineno, name))
    return bad


@pytest.mark.parametrize('path', sorted((ROOT/'tests').glob('*.py')), ids=lambda p: p.stem)
def test_tests_do_not_depend_on_speed(path):
    "No clock, no sleep, no endless loop: speed only changes the duration."
    # in test_crash it limits the size of a file
    allowed = {'resource'} if path.stem == 'test_crash' else set()
    assert [b for b in hurried(path.read_text()) if b[1] not in allowed] == []


def test_speed_dependent_test_is_found():
    for line in ('import time', 'from time import sleep', 'while True: pass',
                 "subprocess.run(['ls'])", 'child.join()', 'run.wait()', 'time.sleep(1)'):
        assert hurried(line), line
    assert not hurried(
        "subprocess.run(['ls'], timeout=9); child.join(9); ' '.join([]); run.wait(9)")


def test_numbers_in_the_readme_are_results():
    "Every value with an interval in the README is in a table of `results/`."
    claimed, stored = re.findall(r'-?\d\.\d{3} \[[^\]]*\]', (ROOT/'README.md').read_text()), set()
    for path in (ROOT/'results').rglob('*.csv'):
        table = pd.read_csv(path).rename(columns={'difference': 'value'})
        stored |= set(re.findall(r'-?\d\.\d{3} \[[^\]]*\]', path.read_text()))
        if {'value', 'low', 'high'} <= set(table):
            stored |= set(table.dropna(subset='value').apply(with_interval, axis=1))
    assert claimed and [v for v in claimed if v not in stored] == []


NAMES = [f.name for f in fields(TrainConfig)]


def test_parameters_are_the_settings():
    assert list(check_parameters(ROOT/'nbs'/'04_train_colab_t4.ipynb', NAMES)) == NAMES


def test_guard_fails_without_the_tag(tmp_path):
    nb = nbformat.read(ROOT/'nbs'/'04_train_colab_t4.ipynb', 4)
    for cell in nb.cells: cell.metadata.pop('tags', None)
    nbformat.write(nb, tmp_path/'04.ipynb')
    with pytest.raises(
            ValueError, match=r'has parameters \[\], expected .*is the `parameters` tag there'):
        check_parameters(tmp_path/'04.ipynb', NAMES)


def test_tag_survives_cleaning(tmp_path):
    for f in ('settings.ini', 'nbs/04_train_colab_t4.ipynb'):
        (tmp_path/f).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/f, tmp_path/f)
    subprocess.run([BIN/'nbdev_clean'], cwd=tmp_path, check=True, capture_output=True,
                   timeout=PATIENCE)
    assert list(check_parameters(tmp_path/'nbs'/'04_train_colab_t4.ipynb', NAMES)) == NAMES


@pytest.mark.parametrize('name', ['smoke', 'paper', 'clinical'])
def test_configs_are_settings(name):
    import yaml
    from cesm_nb.core.settings import make_config
    from cesm_nb.train import check_config
    cfg = make_config(yaml.safe_load((ROOT/'configs'/f'{name}.yaml').read_text()))
    check_config(cfg)


def test_protocol_files_differ_only_in_protocol():
    import yaml
    paper, clinical = (yaml.safe_load((ROOT/'configs'/f'{n}.yaml').read_text())
                       for n in ('paper', 'clinical'))
    assert {k for k in paper | clinical if paper.get(k) != clinical.get(k)} == {'protocol'}


def name_twice(source):
    "Names that a module binds twice at its top: cells of a notebook share one module."
    bound = [t.id for n in ast.parse(source).body if isinstance(n, ast.Assign)
             for target in n.targets for t in getattr(target, 'elts', [target])
             if isinstance(t, ast.Name)]
    kinds = ast.FunctionDef, ast.ClassDef
    bound += [n.name for n in ast.parse(source).body if isinstance(n, kinds)]
    return sorted(k for k in set(bound) if bound.count(k) > 1)


def test_no_cell_replaces_a_name_of_another():
    modules = [p for p in (ROOT/'cesm_nb').rglob('*.py') if p.name != '_modidx.py']
    assert len(modules) > 60 and [p.name for p in modules if name_twice(p.read_text())] == []
    assert name_twice('_LEAST = 1\ndef f(): _LEAST = 2\n_LEAST = 20') == ['_LEAST']
