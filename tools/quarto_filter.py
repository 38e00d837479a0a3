"Quarto's `ipynb-filters` hook: apply nbdev's filters in a plain `quarto render`, and tidy pages."
import ast
import os
import re
import sys
from contextlib import redirect_stdout
from html import escape
from json import dumps, loads
from pathlib import Path
from unittest.mock import patch

fence_re = re.compile(r'^```.*?^```', re.M | re.S)
link_re = re.compile(r'\[(`[^`\n]+`)\]\(https?://[^)\s]+\)')
caption_re = re.compile(r'^#\|\s*tbl-cap:\s*"(.*)"\n', re.M)
badge_re = re.compile(r'\[!\[([^\]]*)\]\(\S+badge\S*\)\](\(\S+\))')
test_re = re.compile(r'(?:test_\w+|assert_\w+)$')
doc_re = re.compile(r'---\n\n(?P<source>\[source\].*\n\n)?#+ (?P<name>\S+)\n(?P<rest>.*)', re.S)
MOST_ROWS = 11 # of a table, with its header; a longer one without a label is folded
MOST_LINES = 10 # of code on a page that is not in the section Library; a longer cell is folded
SIDEBAR = Path(__file__).resolve().parent.parent/'sidebar.yml'


def processed(
    text:str, # notebook as JSON, directives and all
    execute:bool=True, # False leaves signatures out, which need the exported cells to run
) -> str: # the same notebook after nbdev's own documentation filters
    "Apply `FilterDefaults` to the notebook in `text`."
    from execnb.nbio import dict2nb, nb2str
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults, exec_show_docs
    nb = dict2nb(loads(text))
    nb.path_ = 'page.ipynb' # Quarto does not pass the name; nbdev's front matter requires one ...
    # as in nbdev: an `nbdev_export()` cell must not write
    with redirect_stdout(sys.stderr), patch.dict(os.environ, IN_TEST='1'):
        procs = [p for p in FilterDefaults().procs() if execute or p is not exec_show_docs]
        NBProcessor(nb=nb, procs=procs).process()
    front = nb.cells[0]
    front.source = front.source.replace('output-file: page.html\n', '') # ... and stores it
    return nb2str(nb)


def joined(text) -> str:
    "Text of a notebook, which may be a list of lines."
    return text if isinstance(text, str) else ''.join(text)


def in_lines(text) -> list:
    "Text of a notebook as a list of lines: Quarto drops the line ends of a single string."
    return joined(text).splitlines(keepends=True)


def unlink(text:str) -> str:
    "Remove links from code blocks, where their Markdown would be shown."
    return fence_re.sub(lambda block: link_re.sub(r'\1', block[0]), text)


def raw_html(
    html:str, # of an output
    labelled:bool, # can the text refer to it?
    caption:str='', # of a table without a label
) -> list: # Markdown, a list of lines
    "Return HTML as a raw block of Markdown, a long table folded."
    n_rows = len(re.findall(r'<tr\b', html))
    if n_rows > MOST_ROWS and not labelled:
        title = caption or f'Table of {n_rows - 1} rows'
        html = f'<details><summary>{title}</summary>\n{html}\n</details>'
    return in_lines(f'```{{=html}}\n{html}\n```\n')


def fold_signature(
    text:str, # Markdown; that of `show_doc` is a heading, a signature and a sentence
) -> str: # with the name and the sentence shown, under the same anchor
    "Fold the signature of a function; leave other text as it is."
    found = doc_re.match(text)
    if not found: return text
    name, sentence = found['name'], re.search(r'^\*(.+)\*$', found['rest'], re.M)
    shown = f'<code>{name}</code> {escape(sentence[1]) if sentence else ""}'
    return (f'::: {{#{name.lower()}}}\n```{{=html}}\n<details><summary>{shown}</summary>\n```\n\n'
            f'{found["source"] or ""}{found["rest"]}\n\n```{{=html}}\n</details>\n```\n:::\n')


def tidy_output(
    data:dict, # MIME type -> content of an output
    labelled:bool, # has its cell a label?
    caption:str, # of a cell without a label
    library:bool, # is the page in the section Library?
):
    "Unlink code, and show HTML as Markdown: for text/html Quarto loads scripts from other servers."
    if 'text/html' in data:
        data['text/markdown'] = raw_html(joined(data.pop('text/html')), labelled, caption)
    elif 'text/markdown' in data:
        text = unlink(joined(data['text/markdown']))
        data['text/markdown'] = in_lines(text if library else fold_signature(text))


def is_test(cell:dict) -> bool:
    "Does a cell end in an assertion and have no output?"
    try: body = ast.parse(joined(cell['source'])).body
    except SyntaxError: return False # a cell with magics
    if cell.get('outputs') or not body: return False
    last = body[-1]
    if isinstance(last, (ast.With, ast.For)): last = last.body[-1]
    if isinstance(last, ast.Assert): return True
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)): return False
    call = last.value.func
    return bool(test_re.match(getattr(call, 'id', getattr(call, 'attr', ''))))


def fold(
    cell:dict,
    library:bool, # is the page in the section Library?
):
    "Fold the code of a test or a figure, and long code of a chapter, unless an option says how."
    source = joined(cell['source'])
    if re.search(r'^#\|\s*(echo|code-fold|include)\s*:', source, re.M): return
    if re.search(r'^#\|\s*label:\s*fig-', source, re.M): what = 'Code of the figure'
    elif is_test(cell): what = 'Test'
    else: what = '' if library or source.count('\n') < MOST_LINES else 'Code'
    if what: cell['source'] = f'#| code-fold: true\n#| code-summary: "{what}"\n{source}'


def name_in_full(
    front:str, # front matter of a page, whose title is the name of its file
) -> str: # with the title that the sidebar gives the page: its number, its name, a sentence
    "Give a page the title by which the sidebar names it."
    name = re.search(r'^title: (.*)$', front, re.M)
    entry = name and rf'^ *text: "(\d\w* {re.escape(name[1])}: [^"]*)"$'
    full = name and re.search(entry, SIDEBAR.read_text(encoding='utf-8'), re.M)
    return front.replace(name[0], f'title: "{full[1]}"') if full else front


def in_library(
    front:str, # front matter of a page
) -> bool:
    "Is a page listed in the section Library of the sidebar?"
    name = re.search(r'^title: (.*)$', front, re.M)
    library = SIDEBAR.read_text(encoding='utf-8').partition('- section: Library\n')[2]
    return name is not None and f'text: "{name[1]}: ' in library


def tidied(
    text:str, # notebook as JSON, after nbdev's filters
) -> str: # as Quarto should have it
    "Title the page, fold tests, plots and long tables, and load nothing from other servers."
    nb = loads(text)
    front = nb['cells'][0]
    library = in_library(joined(front['source']))
    if front['cell_type'] == 'raw': front['source'] = name_in_full(joined(front['source']))
    for cell in nb['cells']:
        if cell['cell_type'] == 'code': fold(cell, library)
        else: cell['source'] = badge_re.sub(r'[\1]\2', joined(cell['source']))
        labelled = re.search(r'^#\|\s*label:', joined(cell['source']), re.M) is not None
        caption = '' if labelled else ''.join(caption_re.findall(joined(cell['source'])))
        if caption: cell['source'] = caption_re.sub('', joined(cell['source']))
        for output in cell.get('outputs', []):
            tidy_output(output.get('data', {}), labelled, caption, library)
        cell['source'] = in_lines(cell['source'])
    return dumps(nb, ensure_ascii=False)


if __name__ == '__main__':
    text = sys.stdin.read()
    in_proc = '_proc' in Path.cwd().parts # already processed by nbdev
    sys.stdout.write(tidied(text if in_proc else processed(text)))
