# make demo    see it work          make test      everything that is checked
# make setup   the environment      make format    tidy the code

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
# The first that runs, not the first that is found: a version manager's shim may exist and refuse.
PYTHON ?= $(shell for name in python3.11 python3; do $$name -c pass >/dev/null 2>&1 && echo $$name && break; done)

.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:
.PHONY: setup demo test lint types format bench clean

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes by itself and pinned: an unpinned requirement on the way could fetch another build of it first.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing torch and the rest; the first time this takes a minute or two.'
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $@

demo: setup
	$(BIN)/mnemonist demo

# Side by side, one thread each: tests are small, and threads that wait for each other are slower than none.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench ONLY=Layer measures a part.
bench: $(PEERS)
	$(BIN)/python benchmarks/cpu.py $(if $(ONLY),--only '$(ONLY)')

# The peers that speed is compared with.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install -q -e '.[bench]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
