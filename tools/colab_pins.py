"""Print, from the package list that Colab publishes, the pins of what this package and fastai need.

usage: python tools/colab_pins.py pip-freeze.txt > colab.txt
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def name_of(
    word:str, # a requirement or a pin
) -> str: # as PyPI normalises it
    "Take the name of a package."
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', word)[0]).lower()


def colab_pins(
    published:str, # text of `pip freeze` in Colab
    needed:list, # requirements of this package
) -> list: # pins, in the order of the list
    "Keep what is needed, and fastai with its fastcore; local versions (+cu126) and addresses become plain pins."
    names, out = {name_of(w) for w in needed} | {'fastai', 'fastcore'}, []
    for line in published.splitlines():
        if not re.match(r'\w', line) or name_of(line) not in names: continue
        plain = re.fullmatch(r'[\w.-]+==([\w.]+)(\+\w+)?', line)
        wheel = re.search(r'-(\d[\d.]*)(%2B\w+|\+\w+)?-cp', line)
        version = plain or wheel
        if version: out.append(f'{name_of(line)}=={version[1]}')
    return out


def main():
    "Print the pins."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    pins = colab_pins(Path(sys.argv[1]).read_text(), settings['DEFAULT']['requirements'].split())
    if not pins: sys.exit(f'colab_pins: {sys.argv[1]} holds none of the packages that are needed: is it a pip freeze?')
    print('\n'.join(pins))


if __name__ == '__main__': main()
