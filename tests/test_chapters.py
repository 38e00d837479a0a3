"The list of chapters: files written from it are current, and it has each notebook exactly once."
import json

import pytest
import yaml

import make_chapters
from conftest import ROOT


def notebook(path, claim):
    "A notebook whose first cell has a claim."
    path.parent.mkdir(parents=True, exist_ok=True)
    first = dict(cell_type='markdown', source=[f'# {path.stem}\n', '\n', f'> {claim}'])
    table = dict(cell_type='markdown', source=['## Chapters\n', 'old'])
    path.write_text(json.dumps(dict(cells=[first, table])))


@pytest.fixture
def toy(tmp_path):
    "A checkout of three notebooks, one of them in a folder."
    claims = {'index': 'A package', '00_data': 'Rows', 'api/core.settings': 'Every setting'}
    for page, claim in claims.items():
        notebook(tmp_path/'nbs'/f'{page}.ipynb', claim)
    library = {'Library': [{'Core': [{'api/core.settings': 'all "settings"'}]}]}
    pipeline = {'Pipeline': [{'00_data': 'to rows'}]}
    write_list(tmp_path, [dict(index='start here'), pipeline, library])
    return tmp_path


def write_list(root, listed):
    (root/'nbs'/'chapters.yml').write_text(yaml.safe_dump(listed, sort_keys=False))


def test_written_files_are_current():
    for path, text in make_chapters.make_files(ROOT).items():
        assert path.read_text(encoding='utf-8') == text, f'{path}: run tools/make_chapters.py'


def test_sections_pages_and_claims(toy):
    outer, inner, index = make_chapters.make_files(toy).values()
    contents = yaml.safe_load(outer)['website']['sidebar']['contents']
    assert contents[0] == dict(href='nbs/index.ipynb', text='cesm_nb: start here')
    data = dict(href='nbs/00_data.ipynb', text='00 data: to rows')
    assert contents[1] == dict(section='Pipeline', contents=[data])
    settings = dict(href='nbs/api/core.settings.ipynb', text='core.settings: all "settings"')
    core = dict(section='Core', contents=[settings])
    assert contents[2] == dict(section='Library', contents=[core])
    links = yaml.safe_load(outer)['website']['navbar']['left']
    assert links[0] == dict(href='nbs/api/leakage.ladder.ipynb', text='The finding')
    assert len(links) == 5
    without = outer.replace('nbs/', '').split('\n', 2)[2]
    assert inner.split('\n', 2)[2] == without # the headers name each other
    cell = ''.join(json.loads(index)['cells'][1]['source'])
    assert '### Library: Core\n' in cell and 'old' not in cell
    assert '| [core.settings](api/core.settings.ipynb) | Every setting |' in cell


@pytest.mark.parametrize('change, words', [
    (lambda listed: listed.pop(1), 'does not list 00_data'),
    (lambda listed: listed.append({'00_data': 'again'}), 'lists 00_data twice'),
    (lambda listed: listed.append({'09_none': 'none'}), 'lists 09_none, which is no notebook'),
    (lambda listed: listed.append('00_data'), 'is not one `page: title`'),
    (lambda listed: listed.append(dict(a=None)), 'a needs a title')])
def test_faulty_list_is_rejected(toy, change, words):
    listed = yaml.safe_load((toy/'nbs'/'chapters.yml').read_text())
    change(listed)
    write_list(toy, listed)
    with pytest.raises(ValueError, match=words): make_chapters.make_files(toy)


def test_notebook_without_claim_is_rejected(toy):
    notebook(toy/'nbs'/'00_data.ipynb', 'a | b')
    with pytest.raises(ValueError, match='00_data.ipynb: the first cell is not'):
        make_chapters.make_files(toy)


def test_changed_claim_updates_first_page(toy):
    before = make_chapters.make_files(toy)
    notebook(toy/'nbs'/'00_data.ipynb', 'Other rows')
    after = make_chapters.make_files(toy)
    assert [p.name for p in after if after[p] != before[p]] == ['index.ipynb']
