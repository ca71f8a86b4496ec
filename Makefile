# Two commands do everything on a machine with Python 3.11, pip and make:
#   make demo    set up, run the main job on an embedded default, print what came out
#   make test    set up, run every check
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# Set on purpose: no network at run time, and no warning about forked tokenizers.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint types tests-on-ray other-tests clean

# each marker is younger than the environment it stands for
.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev,demo]'
	touch $@

demo: .venv/demo
	$(BIN)/python examples/prepare_demo.py
	$(BIN)/python jobs/integrate.py examples/demo.yaml

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

# two at a time: tests on Ray wait for processes most of the time, and take longest, so that the others give way
test: lint types
	$(MAKE) -j 2 tests-on-ray other-tests

tests-on-ray: .venv/dev
	$(BIN)/python -m pytest -m ray

other-tests: .venv/dev
	nice $(BIN)/python -m pytest -m "not ray"

clean:
	rm -rf .venv runs build *.egg-info .mypy_cache .ruff_cache .hypothesis
