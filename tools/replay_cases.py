"""Run field cases as a user would, and print for each PASS or what differs from what the user would expect.

    python tools/replay_cases.py ../shared/cases          # all of them
    python tools/replay_cases.py ../shared/cases 02 06    # some, by the beginning of their names

Each case is copied to a temporary folder; its `cmd` runs there. The console scripts are those of this checkout, each a fork
of this process, which has imported everything: a case costs what its commands do, not what Python takes to start.
"""
import configparser
import importlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

READ = [r' region used as drawn', r'all of it is in ', r' breasts \((PHANTOM|real images)\) in ', r'; 0 breasts with problems']
NO_REGION_LOST = [r'!region skipped', r'!region on an image that is not in the sheet', r'!22 abnormal without a region']
CHECKED = [r' region used as drawn', r'all of it is in ']
TRAINED = [r'all of it is in ', r'test n=\d+ breasts', r'metrics\.json$', r'report: ', r'!No such file']
A_TO_D = [r'regions,38\.0', r'images with a region,24\.0', r'normal images with a region,4\.0', r'!region skipped', r'; 0 breasts with problems']

# case -> part of its output (after the line `== part`; '*': each part) -> patterns that are there; with ! in front, that are not
EXPECTED = {
    '02': {'*': READ + NO_REGION_LOST},
    '05': {'*': [r' region used as drawn|normal with a region', r'; 0 breasts with problems'] + NO_REGION_LOST},
    '06': {'a_folder': READ + NO_REGION_LOST, 'b_url': READ + NO_REGION_LOST, 'd_tif': READ + NO_REGION_LOST, 'strict': [r'; 0 breasts with problems'],
           'audit': [r'PHANTOM, evidence of nothing|fewer than 5 folds', r'!has no region'], 'regions of the other modality only': [r"cesm_tensorize: .*no region that can be drawn .*modality 'CM'", r'!tensors;']},
    '07': {'a_braces': A_TO_D, 'b_empty': A_TO_D, 'c_spaced': A_TO_D, 'd_nan': A_TO_D, 'e_via3': [r'^regions,1\.0', r'; \d+ breasts with problems'],
           'f_json': [r'^regions,38\.0', r'; 0 breasts with problems'], 'g_python_quotes': [r'38 region skipped', r"cesm_tensorize: .*no region that can be drawn"]},
    '08': {'*': CHECKED + NO_REGION_LOST},
    '10': {'*': CHECKED + NO_REGION_LOST, 'g_age_as_date': [r"age is a date, .*row 5 \('1900-02-09"]},
    '12': {'*': [r'18 region used as drawn', r'!region skipped', r'!region cut off', r'!on the other side', r'; 0 breasts with problems']},
    '16': {'*': TRAINED, 'd_two_classes': [r'all of it is in ', r'test n=\d+ breasts|no breast of|Normal|Benign|Malignant'], 'audit': [r'cesm_audit: .*is absent|cesm_audit: .*no region']},
    '21': {'a_one': [r'1 .*negative'], 'b_three': [r'3 .*negative'], 'c_all': [r'\d+ .*negative'], 'd_blank': [r'\d+ .*blank', r'!; 0 breasts'], 'e_tiny': [r'\d+ .*small', r'!; 0 breasts'],
           'f_white_background': [r'\d+ .*(negative|bright)']},
    '22': {'a_blank_lines': [r"row 14 \('461'\)"], 'b_newline_in_cell': [r"row 14 \('461'\)"]}}


CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({socket!r})
    socket.send_fds(s, [json.dumps([{module!r}, {function!r}, sys.argv, os.getcwd()]).encode()], [0, 1, 2])
    sys.exit(int(s.recv(9) or 1))
"""


def make_scripts(folder):
    "The console scripts of settings.ini, as files that ask this process for a fork of it: nothing is imported twice."
    settings = configparser.ConfigParser()
    settings.read(ROOT/'settings.ini')
    for line in settings['DEFAULT']['console_scripts'].split('\n'):
        name, _, target = line.strip().partition('=')
        if not name: continue
        module, _, function = target.partition(':')
        (folder/name).write_text(CLIENT.format(
            python=sys.executable, socket=str(folder/'socket'), module=module, function=function))
        (folder/name).chmod(0o755)
    return folder


def become(module, function, argv, folder, fds):
    "In a fork: be a console script to its end."
    for i, fd in enumerate(fds): os.dup2(fd, i)
    os.chdir(folder)
    sys.argv, code = argv, 1
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, 'rw'[i > 0], closefd=False) for i in range(3))
    try: code = getattr(importlib.import_module(module), function)()
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc()
    if isinstance(code, str): print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(code if isinstance(code, int) else bool(code))


def answer(server):
    "Run what a client asks for in a fork, and tell the client how it ended."
    client, _ = server.accept()
    with client:
        request, fds, *_ = socket.recv_fds(client, 2**16, 3)
        if not (child := os.fork()): become(*json.loads(request), fds)
        for fd in fds: os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.sendall(str(code if code >= 0 else 128 - code).encode())


def run_cmd(work, scripts, server):
    "Run the `cmd` of a folder; what it printed."
    env = os.environ | {'B': str(scripts)}
    with tempfile.TemporaryFile() as out:
        shell = subprocess.Popen(['bash', 'cmd'], cwd=work, env=env, stdout=out, stderr=subprocess.STDOUT)
        while shell.poll() is None:
            if select.select([server], [], [], .02)[0]: answer(server)
        out.seek(0)
        return out.read().decode(errors='replace')


def parts(text):
    "Output after each line `== name`."
    pieces = re.split(r'^== (.*)\n', text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2]))


def differences(case, text):
    "What a user would not expect to see, or would and does not."
    expected, found = EXPECTED.get(case.name[:2], {}), parts(text)
    out = ['nothing is known of what to expect'] if not expected else [] if found else ['it printed no part']
    out += [f'{part}: nothing was printed' for part in expected if part != '*' and part not in found]
    if 'Traceback' in text: out.append('a traceback: ' + text[text.index('Traceback'):].strip().splitlines()[-1][:200])
    for part, said in found.items():
        for pattern in expected.get(part, expected.get('*', ())):
            there = re.search(pattern.lstrip('!'), said, re.MULTILINE)
            if bool(there) == pattern.startswith('!'): out.append(f"{part}: {'has' if there else 'lacks'} {pattern.lstrip('!')!r}; ends with {said.strip()[-160:]!r}")
    return out


def replay(case, scripts, server):
    "Run one case; what differs."
    with tempfile.TemporaryDirectory() as d:
        work = shutil.copytree(case, Path(d)/case.name)
        for f in [work, *work.rglob('*')]: f.chmod(f.stat().st_mode | 0o200)
        (work/'out').mkdir(exist_ok=True)
        return differences(case, run_cmd(work, scripts, server))


def load():
    "Import what commands import, once; workers would import it again each."
    os.environ.update(TQDM_DISABLE='1', PYTHONWARNINGS='ignore', LOKY_MAX_CPU_COUNT='1', MPLBACKEND='agg')
    warnings.simplefilter('ignore')
    sys.path.insert(0, str(ROOT))
    for path in sorted((ROOT/'cesm_nb').glob('[!_]*.py')): importlib.import_module(f'cesm_nb.{path.stem}')
    import torch
    torch.set_num_threads(1) # threads of its own do not survive a fork


def main(folder, some):
    "Replay cases; the number of those that differ."
    cases = [c for c in sorted(Path(folder).iterdir()) if (c/'cmd').is_file() and (not some or c.name.startswith(tuple(some)))]
    if not cases: raise SystemExit(f'replay_cases: {folder} has no case (a folder with a file cmd)' + (f' that begins with {some}' if some else ''))
    load()
    failed = 0
    with tempfile.TemporaryDirectory() as d, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(Path(d)/'socket'))
        server.listen()
        scripts = make_scripts(Path(d))
        for case in cases:
            start = time.monotonic()
            wrong = replay(case, scripts, server)
            failed += bool(wrong)
            head = f'{case.name}: {"differs" if wrong else "PASS"} ({time.monotonic() - start:.0f} s)'
            print('\n'.join([head, *(f'  {w}' for w in wrong)]), flush=True)
    print(f'{len(cases)-failed} of {len(cases)} cases pass')
    return failed


if __name__ == '__main__':
    if len(sys.argv) < 2: raise SystemExit(__doc__)
    raise SystemExit(bool(main(sys.argv[1], sys.argv[2:])))
