"The ledger of definitions: unchanged by a pure move; a changed definition is found."
import ledger

FIRST = '"""One."""\n__all__ = ["one"]\nimport os\nA = 1 # one\n\ndef one(): return A\n'
SECOND = '''"""Two."""
class Two:
    x: int = 1

def late():
    from .first import one
    return one()
'''


def write(folder, **modules):
    "Write a package of these modules; `sub__name` is in the folder `sub`."
    for name, text in modules.items():
        path = folder/f'{name.replace("__", "/")}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_pure_move_leaves_the_ledger_unchanged(tmp_path):
    before = ledger.ledger(write(tmp_path/'a', first=FIRST, second=SECOND))
    assert {line.split()[1] for line in before} == {'A', 'one', 'Two', 'late'}
    moved = SECOND.replace('.first', '..core.first')
    rest = moved + '\n\ndef one():\n    return A\n'
    after = ledger.ledger(write(tmp_path/'b', core__first='A = 1', sub__rest=rest))
    assert ledger.differences(before, after) == []


def test_changed_and_doubled_definitions_are_found(tmp_path):
    before = ledger.ledger(write(tmp_path/'a', first=FIRST, second=SECOND))
    other = SECOND.replace('int = 1', 'int = 2')
    changed = ledger.ledger(write(tmp_path/'b', first=FIRST, second=other))
    assert ledger.differences(before, changed) == ['gone: Two', 'new: Two']
    doubled = ledger.ledger(write(tmp_path/'c', first=FIRST, second=SECOND + 'A = 1\n'))
    assert ledger.differences(before, doubled) == ['new: A']


def test_package_is_compared_with_a_stored_ledger(tmp_path, capsys):
    assert ledger.main() is None
    stored = tmp_path/'before.txt'
    stored.write_text(capsys.readouterr().out)
    assert not ledger.main(stored) and len(stored.read_text().splitlines()) > 500
    stored.write_text(stored.read_text() + '0 nothing\n')
    assert ledger.main(stored) and 'gone: nothing' in capsys.readouterr().out
