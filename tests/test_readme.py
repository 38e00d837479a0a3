"""Shell lines of README, data/README, CONTRIBUTING and notebooks are run in one folder or parsed.

The README's part without make is run line by line, on a small phantom with the settings of `SMALL`.
Every other line is in the table `PARSED`, with the reason why it is not run here; its program
parses it, so that its options exist."""
import glob
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cesm_nb import cli as commands
from cesm_nb.experiments.grid import make_grid, read_grid_file
from cesm_nb.cohort.splits import make_splits
from cesm_nb.core.settings import TrainConfig, check_parameters
from cesm_nb.synthetic.phantom import plan_phantom
from conftest import PATIENCE, ROOT

PROGRAMS = (r'(?:cesm_\w+|make|papermill|pip|python|nbdev_\w+|accelerate|torchrun|docker|'
            r'pre-commit|mkdir|git)')
SMALL = dict( # program -> settings for a small run; the last of two of one name counts
    cesm_phantom='--n-patients 24 --size-px 64 --signal 2 --no-progress',
    cesm_tensorize='--image-size 32',
    cesm_train='--image-size 32 --epochs 1 --backbones mobilenetv3_small_050 --device cpu',
    cesm_evaluate='--n-draws 20 --no-inside',
    cesm_audit='--n-repeats 1 --n-folds 3 --n-trees 2 --n-draws 20 --n-jobs 1',
    cesm_predict='--anyway')
RUN = ('cesm_phantom', 'cesm_check', 'cesm_audit', 'cesm_tensorize', 'cesm_train', 'cesm_evaluate',
       'cesm_predict')
PARSED = dict( # program -> why its lines are not run here
    pip='downloads 6 GB; the extras and their pins are looked up',
    make='sets up 6 GB first; what make would then start is parsed',
    cesm_reproduce='minutes of chapters; test_train.py runs it',
    cesm_grid='dozens of trainings; test_grids.py runs small ones',
    papermill='starts a kernel per line; test_train.py runs chapter 04 this way',
    accelerate='needs several GPUs; test_devices.py runs two processes on a CPU',
    torchrun='two processes; test_devices.py runs them',
    nbdev_test='minutes per chapter; `make test` runs all',
    nbdev_export='writes into the checkout; test_house.py runs it on a copy',
    nbdev_clean='writes into the checkout; test_house.py runs it on a copy',
    python='tests that run anyway, and tools',
    docker='needs a daemon and downloads',
    git='needs GitHub',
    cd='stands after git clone',
    mkdir='stands before papermill',
    cesm_app='serves until it is stopped; test_app.py serves it',
    cesm_fetch='its answer depends on the folder; cohort.download runs it',
    **dict.fromkeys(RUN, 'the README runs this program; another line of it is parsed'))
BOOK = dict(DATA='data/phantom', FOLDER='data/phantom', FILES='a.jpg', RUN='runs/mine',
            FILE='a.csv') # placeholder -> value


def split_line(text):
    "Split a line into commands, without comment and Colab's `[ ! -d ... ] ||`."
    text = text.strip().removeprefix('!').replace('$(which ', '')
    text = re.sub(r'\s#\s.*$', '', text.replace('cesm_train)', 'cesm_train'))
    parts = [p.strip() for p in re.split(r'&&|\|\|', text)]
    return [p for p in parts if p and not p.startswith(('[ ', 'cp '))]


def lines_of(text):
    "Shell lines of Markdown: fenced blocks, and code spans of a program with arguments."
    blocks = re.findall(r'```(?:sh|bash|console)\n(.*?)```', text, re.S)
    fenced = [line for block in blocks for line in block.splitlines() if line.strip()]
    rest = re.sub(r'```.*?```', '', text, flags=re.S)
    return fenced + re.findall(rf'`({PROGRAMS} [^`\n]+)`', rest)


def every_line():
    "List (where, command) of all documented shell lines; a backslash continues a line."
    join = lambda text: re.sub(r'\\\n\s*', '', text)
    files = ('README.md', 'data/README.md', 'CONTRIBUTING.md')
    out = [(f, line) for f in files for line in lines_of(join((ROOT/f).read_text()))]
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == 'markdown':
                out += [(path.name, line) for line in lines_of(join(cell.source))]
            if cell.cell_type == 'code':
                out += [(path.name, m) for m in re.findall(r'^\s*!.*', join(cell.source), re.M)]
    return list(dict.fromkeys((where, part) for where, line in out for part in split_line(line)))


def words_of(line):
    "Return program and arguments, with placeholders filled in."
    program, *rest = [BOOK.get(w, w) for w in shlex.split(line)]
    return Path(program).name, rest


class Parsed(BaseException): "Raised when a command has parsed its options and would start."


MODULE = dict( # command -> module whose `main` does the work
    cesm_phantom='synthetic.phantom', cesm_fetch='cohort.download', cesm_check='cohort.quality',
    cesm_tensorize='tensorize', cesm_train='train', cesm_evaluate='evaluate',
    cesm_audit='leakage.audit', cesm_reproduce='experiments.reproduce', cesm_grid='experiments.run',
    cesm_predict='cases.predict', cesm_app='cases.web')


def parse(monkeypatch, program, args):
    "Let a console script parse its options, check them against its parameters, and stop."
    def stop_at(work):
        def stop(*a, **k):
            inspect.signature(work).bind(*a, **k)
            raise Parsed
        return stop
    for part, work in ((MODULE[program], 'main'), ('leakage.audit', 'demo'),
                       ('leakage.split_audit', 'main_splits')):
        part = import_module(f'cesm_nb.{part}')
        monkeypatch.setattr(part, work, stop_at(getattr(part, work)))
    with pytest.raises(Parsed): getattr(commands, program)(args)


def parse_pip(args):
    "Each requested extra is in settings.ini, and its requirements are pinned."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    known = settings['DEFAULT']
    lines = (ROOT/'constraints.txt').read_text().splitlines()
    pins = {canonicalize_name(line.split('==')[0]) for line in lines if '==' in line}
    extras = {e for extra in re.findall(r'\[([\w,]+)\]', ' '.join(args)) for e in extra.split(',')}
    assert extras, f'pip {args}: the bare package brings neither papermill nor a kernel'
    for extra in ('', *extras):
        for need in known[f'{extra}_requirements' if extra else 'requirements'].split():
            name = canonicalize_name(Requirement(need).name)
            assert extra == 'ray' or name in pins, f'{need} of {extra or "all"} has no pin'
    if 'notebooks' in extras:
        names = {Requirement(r).name for r in known['notebooks_requirements'].split()}
        assert {'papermill', 'ipykernel'} <= names


def test_pins_install_on_the_oldest_python():
    "A pin that needs 3.11.5 cannot be installed on a 3.11 of a Linux distribution."
    named = re.search(r'Python (3\.\d+) to', (ROOT/'README.md').read_text())[1]
    pinned = re.findall(r'^([\w.-]+)==', (ROOT/'constraints.txt').read_text(), re.M)
    installed = {canonicalize_name(d.name): d for d in distributions()}
    found = [installed[n] for p in pinned if (n := canonicalize_name(p)) in installed]
    assert len(found) > len(pinned)/2
    needs = {d.name: SpecifierSet(d.metadata.get('Requires-Python') or '') for d in found}
    assert [n for n, needed in needs.items() if f'{named}.0' not in needed] == []


def outside_make(*more):
    "Environment as if not started by make, also without the variables `more`."
    return {k: v for k, v in os.environ.items()
            if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', *more)}


def parse_make(monkeypatch, args, folder):
    "Commands of make after setup: targets exist, and their commands are parsed."
    (folder/'.venv').mkdir(exist_ok=True)
    for f in ('.venv/.ready', 'Makefile'): # the newest file: nothing to set up
        if not (folder/f).exists():
            (folder/f).write_bytes((ROOT/f).read_bytes() if f == 'Makefile' else b'')
    for f in ('constraints.txt', 'settings.ini', 'setup.py', 'pyproject.toml'):
        os.utime((folder/f).write_text('') and folder/f or folder/f, (1, 1))
    done = subprocess.run(['make', '-n', *args], cwd=folder, env=outside_make(),
                          capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and 'pip install' not in done.stdout, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        started = line.split(' timeout 3600 ')[-1].removeprefix('OMP_NUM_THREADS=1 ')
        program, rest = words_of(started)
        assert program in PARSED, line
        if program == 'cesm_reproduce':
            parse(monkeypatch, program, rest)
            changes = dict(w.split('=', 1) for w in rest[rest.index('--set') + 1:])
            assert set(changes) <= set(TrainConfig.__dataclass_fields__), changes


def make_wheel(folder):
    "A package of one module, as installed from an index."
    path = folder/'toy-1-py3-none-any.whl'
    files = {
        'toy.py': 'one = 1\n',
        'toy-1.dist-info/METADATA': 'Metadata-Version: 2.1\nName: toy\nVersion: 1\n',
        'toy-1.dist-info/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n'
                                 'Tag: py3-none-any\n'}
    with zipfile.ZipFile(path, 'w') as wheel:
        for name, text in files.items(): wheel.writestr(name, text)
        record = 'toy-1.dist-info/RECORD'
        wheel.writestr(record, ''.join(f'{name},,\n' for name in [*files, record]))
    return path


@pytest.mark.parametrize('installer', ['pip', 'uv'])
def test_setup_compiles_bytecode(installer, tmp_path):
    "With `PYTHONDONTWRITEBYTECODE`, code that setup does not compile is compiled at each start."
    for name in ('constraints.txt', 'settings.ini', 'setup.py', 'pyproject.toml'):
        (tmp_path/name).touch()
    (tmp_path/'Makefile').write_bytes((ROOT/'Makefile').read_bytes())
    (tmp_path/'cesm_nb').mkdir()
    (tmp_path/'cesm_nb'/'ours.py').write_text('two = 2\n')
    env = outside_make('PYTHONPATH') | dict(PYTHONDONTWRITEBYTECODE='1')
    if installer == 'pip': env |= dict(PIP_NO_INDEX='1', PIP_FIND_LINKS='')
    command = ['make', 'setup', 'VENV=venv', f'PYTHON={sys.executable}',
               f'WANTED={make_wheel(tmp_path)}']
    made = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert made.returncode == 0, made.stdout + made.stderr
    if (tmp_path/'venv'/'bin'/'uv').exists() != (installer == 'uv'):
        pytest.skip('no index to install uv from')
    for source in (next((tmp_path/'venv').rglob('toy.py')), tmp_path/'cesm_nb'/'ours.py'):
        compiled = Path(importlib.util.cache_from_source(str(source)))
        assert compiled.exists(), f'{installer} leaves {source.name} without bytecode'


def parse_papermill(args):
    "The notebook, its settings file and each parameter exist."
    from papermill.cli import papermill
    given = papermill.make_context('papermill', list(args)).params
    known = check_parameters(ROOT/given['notebook_path'], [*TrainConfig.__dataclass_fields__])
    for f in given['parameters_file']:
        assert set(yaml.safe_load((ROOT/f).read_text())) <= set(known), f
    assert {k for k, _ in given['parameters']} <= set(known)


def parse_other(program, args):
    "Launchers accept their options; named tools and tests exist."
    if program == 'accelerate':
        from accelerate.commands.launch import launch_command_parser
        return launch_command_parser().parse_args(args[1:]).training_script_args
    if program == 'torchrun':
        from torch.distributed.run import get_args_parser
        return get_args_parser().parse_args(args).training_script_args
    files = [w for w in args if re.search(r'\.(py|ipynb)$', w)]
    assert program != 'python' or files, args
    for f in files: assert (ROOT/f).is_file(), f'{program} {f}'
    if program == 'nbdev_test':
        from nbdev.test import nbdev_test
        for o in (w for w in args if w.startswith('--')):
            assert o[2:] in inspect.signature(nbdev_test).parameters, o


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder like a fresh clone: tracked files, and no data, run or environment."
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, text=True, check=True, timeout=PATIENCE)
    for top in {f.split('/')[0] for f in listed.stdout.splitlines()} - {'data'}:
        (tmp_path/top).symlink_to(ROOT/top)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT)) # as after the first line, pip install -e
    return tmp_path


def readme_block():
    "Lines of the README's part without make, without comments."
    text = (ROOT/'README.md').read_text()
    part = text[text.index('Without make'):]
    return lines_of(part)[:part.split('```')[1].count('\n') - 1]


def git_status():
    "What has changed in the checkout, ignored files aside."
    return subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True,
                          text=True, check=True, timeout=PATIENCE).stdout


def test_readme_without_make_runs(folder, capsys):
    "From an empty folder to the page of a case, in the order of the README; git sees no change."
    before = git_status()
    calls = [words_of(part) for line in readme_block() for part in split_line(line)]
    assert [p for p, _ in calls] == ['pip', *RUN]
    for program, args in calls[1:]:
        small = shlex.split(SMALL.get(program, ''))
        own = [w for w in args for w in (sorted(glob.glob(w)) if '*' in w else [w])]
        assert '*' not in ' '.join(own), f'{program} {args}: nothing there matches'
        getattr(commands, program)(own + small)
    assert capsys.readouterr().out.count('PHANTOM') >= 4
    for made in ('cesm_check/index.html', 'cesm_audit/index.html', 'mine/tables/table1.csv',
                 'mine/report.html', 'cesm_predict/predictions.csv'):
        assert (folder/'runs'/made).is_file(), made
    assert git_status() == before
    ignored = subprocess.run(['git', 'check-ignore', 'runs/x', 'data/phantom/x'], cwd=ROOT,
                             capture_output=True, text=True, timeout=PATIENCE)
    made = {f.name for f in folder.iterdir() if not f.is_symlink()}
    assert made <= {'runs', 'data'} and ignored.stdout.split() == ['runs/x', 'data/phantom/x']


def test_readme_is_short_and_names_all_doors():
    text = (ROOT/'README.md').read_text()
    assert len(text.split()) < 1200
    for words in ('git clone', 'docker build', 'cesm_app', 'Windows', 'macOS', 'Colab',
                  'areas under', 'CLAHE, a local contrast', 'A *protocol* is', 'A *phantom* is'):
        assert words in text, words


def test_readme_case_is_a_test_breast():
    "The breast of the README's last line is held out by its training, with both views."
    lines = {p: a for line in readme_block() for p, a in map(words_of, split_line(line))}
    given = lines['cesm_phantom']
    n, signal = (float(given[given.index(k) + 1]) for k in ('--n-patients', '--signal'))
    smoke = yaml.safe_load((ROOT/'configs'/'smoke.yaml').read_text())
    assert (n, signal) == (smoke['phantom_patients'], smoke['phantom_signal'])
    plan = plan_phantom(int(n))
    seen = plan.assign(label=plan.label.where(plan.seen != 'low_energy', 0)) # subtracted images
    split = make_splits(seen, 'patient', TrainConfig.seed)
    patient, side = re.search(r'/P(\d+)_([LR])_CM_', lines['cesm_predict'][0]).groups()
    row = (split.patient_id == int(patient)) & (split.side == side)
    assert split.split[row].tolist() == ['test'] and plan.views[row].tolist() == ['CC MLO']


def test_other_shell_lines_parse(folder, monkeypatch, tmp_path_factory):
    "Each shell line calls a program of the tables, which accepts its options."
    bare, used, bad = tmp_path_factory.mktemp('bare'), set(), []
    for where, line in every_line():
        program, args = words_of(line)
        assert program in PARSED, (
            f'{where}: the program of `{line}` is in no table: run it, or add why it is not run')
        used.add(program)
        try:
            with monkeypatch.context() as m:
                if program == 'pip': parse_pip(args)
                elif program == 'make': parse_make(m, args, bare)
                elif program == 'papermill': parse_papermill(args)
                elif program.startswith('cesm_'):
                    if args == ['--help']: continue # tested with cli
                    fragment = program == 'cesm_grid' and '--data' not in args
                    rest = ['configs/primary.yaml', '--data', 'data'] if fragment else []
                    parse(m, program, args + rest)
                    if program == 'cesm_grid' and args[0].endswith('.yaml'):
                        make_grid(read_grid_file(ROOT/args[0]))
                else:
                    rest = parse_other(program, args)
                    if rest: parse(m, 'cesm_train', rest)
        except (AssertionError, SystemExit, pytest.fail.Exception, OSError, ValueError) as e:
            bad.append(f'{where}: `{line}`: {e!r}')
    assert bad == []
    unused = set(PARSED) - used
    assert len(used) >= 12
    assert unused <= {'docker', 'cesm_reproduce', 'git', 'mkdir'}, unused


@pytest.mark.parametrize('kind, works', [
    (commands.Phantom, ('synthetic.phantom.make_phantom',)),
    (commands.Check, ('cohort.quality.main',)), (commands.Fetch, ('cohort.download.main',)),
    (commands.Reproduce, ('experiments.reproduce.reproduce',)),
    (commands.Grid, ('experiments.run.main',)), (commands.App, ('cases.web.main',)),
    (commands.Predict, ('imaging.dicom.read_case', 'cases.predict.main'))])
def test_options_are_parameters(kind, works):
    "Each option has the name and the default of its parameter."
    known = {}
    for module, work in (w.rsplit('.', 1) for w in works):
        known |= inspect.signature(getattr(import_module(f'cesm_nb.{module}'), work)).parameters
    default = lambda f: inspect.Parameter.empty if f.default is MISSING else f.default
    of_option = {f.name: default(f) for f in fields(kind)}
    of_option.pop('root', None) # has a default only on the command line
    expected = {k: str(known[k].default) for k in of_option}
    assert {k: str(v) for k, v in of_option.items()} == expected


def test_wrong_option_is_found(monkeypatch):
    "The check can fail: an option and an extra that do not exist."
    with pytest.raises(SystemExit): parse(monkeypatch, 'cesm_evaluate', ['runs/mine', '--no-such'])
    with pytest.raises(KeyError): parse_pip(['install', '.[nothing]'])
    with pytest.raises(AssertionError):
        parse_papermill(['nbs/04_train_colab_t4.ipynb', 'x.ipynb', '-p', 'no_such', '1'])
    assert words_of('cesm_check FOLDER') == ('cesm_check', ['data/phantom'])
    text = '`cesm_check X`\n```sh\nmake test # all\n```'
    assert lines_of(text) == ['make test # all', 'cesm_check X']


def workflows():
    "Text of each workflow by name."
    return {p.stem: p.read_text() for p in sorted((ROOT/'.github'/'workflows').glob('*.yaml'))}


def test_actions_are_pinned_by_commit():
    used = [line for text in workflows().values() for line in re.findall(r'uses: (.*)', text)]
    pinned = r'[\w./-]+@[0-9a-f]{40} # v[\d.]+'
    assert len(used) >= 10 and [u for u in used if not re.fullmatch(pinned, u)] == []
    assert len({u.split('@')[0] for u in used}) == len(set(used)), 'one commit of each action'
    for name, text in workflows().items():
        assert yaml.safe_load(text)['permissions'] == {'contents': 'read'}, name


def test_workflow_commands_exist(tmp_path):
    for name, text in workflows().items():
        for f in re.findall(r'(?:tools|nbs)/[\w/]+\.(?:py|ipynb)', text):
            assert (ROOT/f).is_file(), f'{name}: {f}'
    from colab_pins import colab_pins, moved
    from lowest import lowest
    requirements = ['numpy>=2', 'torch>=2.4', 'simplejpeg>=1.8.1', 'nbdev==2.4.14', 'fastcore']
    assert lowest(requirements) == ['numpy~=2.0.0', 'torch~=2.4.0', 'simplejpeg~=1.8.1']
    wheel = 'torch @ https://x/torch-2.8.0%2Bcu126-cp312-cp312-linux_x86_64.whl#sha256=1'
    published = ('# head\nscikit_learn==1.6.1\nfastcore==1.7.29\nkeras==3.8.0\n'
                 f'torchvision==0.23.0+cu126\n{wheel}\n')
    assert colab_pins(published, ['torch>=2.4', 'scikit-learn>=1.6', 'torchvision>=0.19']) == [
        'scikit-learn==1.6.1', 'fastcore==1.7.29', 'torchvision==0.23.0', 'torch==2.8.0']
    after = 'cesm_nb @ file:///x\nFastcore==1.8\nnumpy==2.0.2\n'
    assert moved(['numpy==2.0.2', 'fastcore==1.7', 'timm==1.0.25'], after) == [
        'fastcore==1.7 has become 1.8', 'timm==1.0.25 has become nothing']


def test_colab_requirements_have_no_upper_bound():
    "No upper bounds for Colab: fastai there needs its own fastcore."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    needs = ' '.join(settings['DEFAULT'][k] for k in (
        'requirements', 'notebooks_requirements', 'dicom_requirements')).split()
    assert [w for w in needs if re.search('[<=!~]=?', w.replace('>=', ''))] == []
    assert 'nbdev' not in ' '.join(needs)


def test_colab_packages_are_kept():
    "No requirement exceeds Colab's versions, so that pip keeps its packages."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    needs = [Requirement(w) for k in ('requirements', 'notebooks_requirements')
             for w in settings['DEFAULT'][k].split()]
    lines = (ROOT/'tools'/'colab.txt').read_text().splitlines()
    colab = dict(line.split('==') for line in lines if line[0] != '#')
    known = lambda r: colab.get(canonicalize_name(r.name))
    assert [str(r) for r in needs if known(r) and not r.specifier.contains(known(r))] == []
    unknown = {r.name for r in needs if not known(r)} # not preinstalled, or not listed
    assert unknown == {'captum', 'simplejpeg', 'tyro', 'papermill', 'filelock'}
