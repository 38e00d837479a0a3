# Two commands: `make reproduce` sets everything up and runs chapters 00 to 05, `make test` sets up and tests.
# Settings: DATA=/path/to/CDD-CESM PROTOCOL=paper|clinical RUN=runs/name SET="image_size=112 epochs=6"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
PROTOCOL ?= paper
RUN ?=
SET ?=
WANTED := --constraint constraints.txt --editable '.[dev,dask]'

.PHONY: help setup reproduce test docs-check clean

help:
	@sed -n '1,2p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: constraints.txt settings.ini setup.py pyproject.toml
	@echo "Setting up $(VENV): 6 GB, about a minute with uv, two minutes or more with pip"
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv && UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(WANTED) || \
	$(BIN)/python -m pip install --quiet $(WANTED) # pip reads an index of one's own that uv does not know
	$(BIN)/python -m compileall -q cesm_nb
	touch $@

reproduce: $(VENV)/.ready
	$(BIN)/cesm_reproduce --data '$(DATA)' --protocol '$(PROTOCOL)' --run-dir '$(RUN)' --set $(SET)

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 timeout 3600 $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist loadfile

docs-check: $(VENV)/.ready
	$(BIN)/python tools/check_docs.py

clean:
	rm -rf _proc _docs _site build *.egg-info
