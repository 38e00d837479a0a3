"""Write the metadata with which others find and reuse this repository.

usage: python tools/make_crates.py [--check]
`results/NAME/ro-crate-metadata.json` (Workflow Run RO-Crate) for each published grid, from its
`settings.json` and files; `codemeta.json` from `settings.ini` and `CITATION.cff`;
`data/croissant.json` (Croissant) from the sheet's columns. `--check` writes nothing and fails if a
file is absent or stale. Run it after publishing results."""
import argparse
import hashlib
import json
import shlex
import sys
from configparser import ConfigParser
from datetime import date
from functools import cache
from pathlib import Path

import yaml

from cesm_nb.core.terms import REGIONS_NAME, SHEET_COLUMNS, SHEET_NAME

ROOT = Path(__file__).resolve().parent.parent
CRATE = 'ro-crate-metadata.json'
CODE, DATA = 'https://github.com/cesm-nb/cesm_nb', 'https://doi.org/10.7937/29kw-ae92'
APACHE, CC_BY = (f'https://spdx.org/licenses/{k}' for k in ('Apache-2.0', 'CC-BY-4.0'))
PROFILES = ('process/0.5', 'workflow/0.5')
KINDS = { # suffix -> media type
    '.csv': 'text/csv', '.gz': 'application/gzip', '.html': 'text/html', '.md': 'text/markdown',
    '.json': 'application/json', '.png': 'image/png', '.svg': 'image/svg+xml',
    '.tex': 'application/x-tex'}
INTEGERS = ('Patient_ID', 'Age')
cite = cache(lambda: yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8')))
ref = lambda where: {'@id': where}
entity = lambda where, kind, **more: {'@id': where, '@type': kind} | more


def describe_file(path):
    "A file of a crate with its size and digest."
    content = path.read_bytes()
    return entity(path.name, 'File', name=path.name, encodingFormat=KINDS[path.suffix],
                  contentSize=str(len(content)), sha256=hashlib.sha256(content).hexdigest())


def list_commits(commit):
    "All commits of `settings.json`, whose runs may have been made at several."
    if isinstance(commit, str): return [commit]
    return sorted({c for of in commit.values() for c in list_commits(of)})


def make_crate(folder, published):
    "Workflow Run RO-Crate: a command at each commit turned a data set into the folder's files."
    s = json.loads((folder/'settings.json').read_text())
    config = next(w for w in shlex.split(s['command']) if w.endswith('.yaml'))
    files = [describe_file(f) for f in sorted(folder.iterdir())
             if f.suffix in KINDS and f.name != CRATE]
    commits = list_commits(s['commit'])
    at = {c: f'{CODE}/blob/{c}/{config}' for c in commits}
    inputs = [ref(DATA), *(ref(f'#{k}') for k in ('seeds', 'data_fingerprint'))]
    flows = [entity(
        w, ['File', 'SoftwareSourceCode', 'ComputationalWorkflow'], name=config, version=c,
        url=w, license=ref(APACHE), programmingLanguage=ref('#cesm_grid')) for c, w in at.items()]
    runs = [entity(f'#run-{c[:7]}', 'CreateAction', name=f'{s["command"]} at commit {c}',
                   instrument=ref(w), object=inputs, result=[ref(f['@id']) for f in files],
                   agent=ref('#authors')) for c, w in at.items()]
    values = dict(seeds=sorted({n for seeds in s['seeds'].values() for n in seeds}),
                  data_fingerprint=s['data_fingerprint'])
    profiles = [entity(f'https://w3id.org/ro/wfrun/{p}', 'CreativeWork', name=f'{p} run crate')
                for p in PROFILES]
    root = entity(
        './', 'Dataset', name=s['caption'], datePublished=published, license=ref(APACHE),
        description=f'{s["n_runs"]} runs on {s["n_breasts"]} breasts of {s["n_patients"]} patients.'
        f' settings.json: settings and versions; {CODE}/blob/main/results/README.md: caveats',
        conformsTo=[ref(p['@id']) for p in profiles], mainEntity=ref(at[commits[0]]),
        hasPart=[ref(e['@id']) for e in files + flows] + [ref(DATA)],
        mentions=[ref(r['@id']) for r in runs])
    return {'@context': 'https://w3id.org/ro/crate/1.1/context', '@graph': [
        entity(CRATE, 'CreativeWork', about=ref('./'),
               conformsTo=ref('https://w3id.org/ro/crate/1.1')),
        root, *profiles, *files, *flows, *runs,
        entity('#cesm_grid', 'ComputerLanguage', name='settings of cesm_grid', url=CODE),
        entity('#authors', 'Organization', name=cite()['authors'][0]['name']),
        entity(DATA, 'Dataset', name='CDD-CESM', url=DATA, license=ref(CC_BY)),
        *(entity(f'#{k}', 'PropertyValue', name=k, value=v) for k, v in values.items())]}


def make_codemeta():
    "Metadata of the code."
    ini, c = ConfigParser(delimiters=['=']), cite()
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    d = ini['DEFAULT']
    papers = [r for r in c['references'] if r['type'] == 'article']
    return {'@context': 'https://w3id.org/codemeta/3.0', '@type': 'SoftwareSourceCode'} | dict(
        name=d['lib_name'], description=d['description'], version=c['version'],
        datePublished=str(c['date-released']), license=f'https://spdx.org/licenses/{c["license"]}',
        codeRepository=c['repository-code'], issueTracker=f'{c["repository-code"]}/issues',
        url=d['doc_host'] + d['doc_baseurl'], programmingLanguage='Python',
        runtimePlatform=f'Python {d["min_python"]} or later', keywords=d['keywords'].split(),
        author=[{'@type': 'Organization', 'name': a['name']} for a in c['authors']],
        softwareRequirements=d['requirements'].split(),
        referencePublication=[
            {'@type': 'ScholarlyArticle', 'name': r['title']} | (
                {'@id': f'https://doi.org/{r["doi"]}'} if 'doi' in r else {}) for r in papers])


def make_croissant():
    "CDD-CESM as `cesm_nb.data` reads it: columns of the sheet, image files; no row."
    import mlcroissant as mlc
    data = next(r for r in cite()['references'] if r['type'] == 'data')
    kind = lambda c: mlc.DataType.INTEGER if c in INTEGERS else mlc.DataType.TEXT
    fields = [mlc.Field(
        id=f'sheet/{i}', name=c, data_types=[kind(c)], source=mlc.Source(
            file_object=SHEET_NAME, extract=mlc.Extract(column=c)))
        for i, c in enumerate(SHEET_COLUMNS)] # ids hold no blanks
    excel = 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet'
    folder = mlc.FileObject( # downloaded in parts, so that no digest is defined: as on hubs
        id='folder', name='folder', content_url=DATA, encoding_formats=['text/html'],
        sha256='https://github.com/mlcommons/croissant/issues/80',
        description='folder that holds what was downloaded')
    file = lambda name, form, what: mlc.FileObject(
        id=name, name=name, content_url=name, encoding_formats=[form], description=what,
        contained_in=['folder'])
    return mlc.Metadata(
        name='CDD-CESM', url=DATA, license=[CC_BY], version='1.0.0', cite_as=data['title'],
        description=data['title'] + ', laid out as in '
        f'{CODE}/blob/main/data/README.md', distribution=[
            folder, file(SHEET_NAME, excel, 'a row per image'),
            file(REGIONS_NAME, 'text/csv', 'hand-drawn regions, exported from VIA'),
            mlc.FileSet(id='images', name='images', includes=['**/P*_*_*_*.jpg'],
                        contained_in=['folder'], encoding_formats=['image/jpeg'],
                        description='an image per file, named as in the column Image_name')],
        record_sets=[mlc.RecordSet(id='sheet', name='sheet', fields=fields)]).to_json() | dict(
            datePublished=f'{data["year"]}')


def make_all():
    "Path -> its content, with the stored date of each crate that has not changed."
    out = {ROOT/'codemeta.json': make_codemeta(), ROOT/'data'/'croissant.json': make_croissant()}
    for settings in sorted((ROOT/'results').glob('*/settings.json')):
        if 'grid' not in json.loads(settings.read_text()): continue
        path, today = settings.parent/CRATE, f'{date.today()}'
        stored = json.loads(path.read_text()) if path.exists() else {}
        dates = [e['datePublished'] for e in stored.get('@graph', []) if e['@id'] == './']
        made = make_crate(settings.parent, dates[0] if dates else today)
        if made != stored:
            root = next(e for e in made['@graph'] if e['@id'] == './')
            root['datePublished'] = today
        out[path] = made
    return {p: json.dumps(made, indent=1, default=str) + '\n' for p, made in out.items()}


def main():
    "Write, or compare."
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true', help='write nothing; fail if a file is stale')
    check = ap.parse_args().check
    stale = {p: t for p, t in make_all().items() if not p.exists() or p.read_text() != t}
    if check and stale:
        sys.exit(f'{", ".join(str(p.relative_to(ROOT)) for p in stale)}: '
                 'run python tools/make_crates.py')
    for path, text in stale.items(): path.write_text(text)


if __name__ == '__main__': main()
