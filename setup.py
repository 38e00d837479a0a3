"Package `cesm_nb` as described in `settings.ini`: name, version, dependencies and commands."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    packages=find_packages(include=['cesm_nb', 'cesm_nb.*']),
    package_data={'cesm_nb': ['released/*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={
        k.removesuffix('_requirements'): v.split()
        for k, v in cfg.items() if k.endswith('_requirements')},
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: {v}' for v in ('3.11', '3.12', '3.13')),
        'Topic :: Scientific/Engineering :: Medical Science Apps.',
    ],
    zip_safe=False,
)
