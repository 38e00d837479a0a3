"""Print the lowest release that `settings.ini` allows of each package, as constraints for pip.

usage: python tools/dev/lowest.py > lowest.txt
"""
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETS = ['requirements', *(f'{x}_requirements' for x in ('dev', 'dicom', 'notebooks', 'dask'))]


def lowest(
    words:list, # requirements, such as numpy>=2
) -> list: # such as numpy~=2.0: the lowest series
    "Turn floors into constraints; requirements without a floor are left out."
    found = [re.fullmatch(r'([\w.-]+)>=(\d[\d.]*)', w) for w in words]
    floor = lambda v: v if v.count('.') > 1 else f'{v}.0' if '.' in v else f'{v}.0.0'
    return [f'{m[1]}~={floor(m[2])}' for m in found if m]


def main():
    "Print one constraint per line, each package once."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    words = [w for k in SETS for w in settings['DEFAULT'][k].split()]
    print('\n'.join(sorted(set(lowest(words)))))


if __name__ == '__main__': main()
