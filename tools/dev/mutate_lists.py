"""Write lists of cases and split files in the ways of many programs, read them, count the outcomes.

usage: python tools/dev/mutate_lists.py [--n 200] [--seed 123] [--only 17]
Each mutation writes the same rows with other separators, encodings, line ends, quotes, decimal
commas, header spellings, doubled columns, trailing separators, blank rows, titles, or as a
workbook; or it puts an odd value into one cell. An outcome is `same` (the same rows), `refused` (in
one sentence; a list refuses a single case, as the reader of cases does), `value` (another name,
file or window, as in the cell), or bad: TRACEBACK, HANG or WRONG (other rows without a message).
Encodings that every reader takes for another one, such as those of DOS and UTF-7, are left out. The
seed is printed; `--only I` repeats one mutation.
"""
import io
import random
import tempfile
from pathlib import Path

import openpyxl
import pandas as pd

from cesm_nb.cases.predict import list_cases
from cesm_nb.cohort.splits import read_splits
from cesm_nb.core.terms import DENSITY
from cesm_nb.leakage.split_audit import read_foreign
from mutate import BAD, attempt, read_options, report

CASES = [
    ['case', 'files', 'age', 'density', 'side', 'window'],
    ['Fälle 1', 'a CC.png; a MLO.png', '46.5', 'B', 'L', '1'], ['b', 'b.dcm', '60', '', 'R', ''],
    ['c', 'c.dcm;d.dcm;e.dcm', '', 'D', '', ''], ['007', 'é.png', '71', 'A', 'R', '2']]
SPLIT = [['patient_id', 'side', 'split']] + [
    [str(p), side, ('train', 'val', 'test')[p % 3]] for p in range(1, 9) for side in 'LR']
ODD = '', 'x', 'nan', '-1', '1e999', '4,5', '=1+1', '0x2e', '²', 'tset', \
    'P', '1.5', '-0', '\0'
FREE = 'case', 'files', 'window' # columns that may hold any text; all cells may be empty
ENCODINGS = 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252', 'utf-32'


def write_rows(rows, sep, rng, quote=False):
    "Rows as text; cells are quoted as needed, or all."
    cell = lambda c: '"' + c.replace('"', '""') + '"' if quote or sep in c or '\n' in c else c
    end = rng.choice(['\n', '\r\n', '\n', '\r'])
    return end.join(sep.join(map(cell, r)) for r in rows) + rng.choice([end, end, '', end*3])


def change_form(rows, rng):
    "The same rows in another form: how, and the bytes."
    how, rows = [], [[*r] for r in rows]
    columns = ['double', 'double, spelled', 'order', 'spelling', 'no column', 'column', 'title']
    kind = rng.choice([*columns, 'trailing', 'trailing', 'blank rows', 'decimal', 'decimal, bare',
                       'none', 'short rows', 'sep='])
    sep, at = rng.choice([',', ';', '\t', '|', ',', ';', ' ', ':']), rng.randrange(len(rows[0]))
    if kind == 'double':
        for r in rows: r.append(r[at])
        if rng.random() < .5: rows[1][-1] = 'other'
    elif kind == 'double, spelled':
        for r in rows: r.append(r[at])
        rows[0][-1] = rng.choice([str.upper, str.title, lambda c: f' {c} '])(rows[0][at])
    elif kind == 'order':
        order = rng.sample(range(len(rows[0])), len(rows[0]))
        rows = [[r[k] for k in order] for r in rows]
    elif kind == 'spelling': rows[0] = [rng.choice([str.upper, str.title])(c) for c in rows[0]]
    elif kind == 'no column': rows = [r[1:] for r in rows]
    elif kind == 'column':
        for i, r in enumerate(rows): r.insert(at, f'note {i}')
    elif kind == 'title': rows.insert(0, ['A title'])
    elif kind == 'trailing':
        which = rng.choice(['header', 'rows', 'all', 'one'])
        chosen = dict(header=rows[:1], rows=rows[1:], all=rows, one=rows[2:3])[which]
        for r in chosen: r += ['']*rng.choice([1, 1, 3])
        kind += f' {which}'
    elif kind == 'blank rows':
        blank = ['']*rng.choice([1, len(rows[0])])
        for _ in range(3): rows.insert(rng.randrange(1, len(rows)), blank)
    elif kind == 'short rows': rows = [r[:len(r) - (r[-1] == '')] for r in rows]
    elif 'decimal' in kind: rows = [[c.replace('46.5', '46,5') for c in r] for r in rows]
    how.append(kind)
    if rng.random() < .2:
        how.append('workbook')
        book = openpyxl.Workbook()
        for r in rows: book.active.append(r)
        book.save(data := io.BytesIO())
        return ', '.join(how), data.getvalue()
    text = write_rows(rows, sep, rng, rng.random() < .2)
    if kind == 'decimal, bare': text = text.replace('"46,5"', '46,5')
    if kind == 'sep=': text = f'sep={rng.choice([sep, sep, ";"])}\n{text}'
    encoding = rng.choice(ENCODINGS)
    return f'{kind}, {sep!r}, {encoding}', text.encode(encoding)


def change_cell(rows, rng):
    "An odd value in one cell: how, and the bytes."
    rows = [[*r] for r in rows]
    row, column = rng.randrange(1, len(rows)), rng.randrange(len(rows[0]))
    rows[row][column] = rng.choice(ODD)
    return f'{rows[0][column]} {rows[row][column]!r}', write_rows(rows, ',', rng).encode()


def is_used(files, own):
    "Whether `read_case` may use a case; it refuses what is checked here."
    own = dict(age_years=50, density='A', side='L') | own
    return 'problem' not in own and 10 <= own['age_years'] <= 120 and \
        own['density'].upper() in DENSITY and own['side'].upper() in ('L', 'R')


def read_list(path): return [(f, o) for f, o in list_cases([path]) if is_used(f, o)]


def read_split(path):
    table = pd.DataFrame(SPLIT[1:], columns=SPLIT[0])[['patient_id', 'side']]
    return read_splits(path, table.astype(dict(patient_id=int))).to_dict('records')


def read_audited(path):
    return read_foreign(path)[['patient_id', 'side', 'split']].to_dict('records')


READERS = (read_list, CASES), (read_split, SPLIT), (read_audited, SPLIT)


def name_outcome(reader, path, before, free):
    "Outcome of a mutation and its message; `free`: whether one row may hold another value."
    got = []
    end = attempt(lambda: got.extend(reader(path)))
    if end: return (end.split(':')[0] if end.startswith(BAD) else 'refused'), end
    if got == before: return 'same', ''
    lost = [r for r in before if r not in got]
    if reader is read_list and got == [r for r in before if r in got] and len(lost) == 1:
        return 'refused', 'one case'
    if free and len(got) == len(before) and len(lost) == 1: return 'value', ''
    return 'WRONG', f'{got}'[:600]


def mutate(
    n:int, # mutations
    seed:int, # the same mutations again
    only:int=-1, # run this one alone; -1: all
) -> pd.DataFrame: # reader, how, outcome, detail; one row per mutation
    "Write, read and rate the outcomes."
    out = []
    with tempfile.TemporaryDirectory(prefix='cesm_mutate_') as d:
        path = Path(d)/'list.csv'
        for i in range(n) if only < 0 else [only]:
            (reader, rows), rng = READERS[i % len(READERS)], random.Random(f'{seed}-{i}')
            path.write_bytes(write_rows(rows, ',', random.Random(0)).encode())
            before, change = reader(path), rng.choice([change_form]*3 + [change_cell])
            how, data = change(rows, rng)
            path.write_bytes(data)
            free = change is change_cell and (how.split()[0] in FREE or how.endswith("''"))
            outcome, detail = name_outcome(reader, path, before, free)
            name = reader.__name__.replace('_', ' ')
            out.append(dict(i=i, reader=name, how=how, outcome=outcome, detail=detail))
            if outcome in BAD: print(out[-1], flush=True)
    return pd.DataFrame(out)


def main():
    "Print the outcomes of all readers."
    o = read_options(__doc__, 200)
    report(mutate(o.n, o.seed, o.only), 'reader', 'lists and splits', o)


if __name__ == '__main__': main()
