# `make demo` and `make test` need nothing but Python 3.11 or newer and the package registry.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= whatwhere-demo

# Real data and weights, where they lie beside the checkout; tests that want them skip elsewhere.
export WHATWHERE_DATA    ?= $(wildcard $(abspath ../shared/data))
export WHATWHERE_WEIGHTS ?= $(wildcard $(abspath ../shared/weights))

.PHONY: help setup demo test test-slow check fix bench bench-gpu sweep docs clean

help:            ## these lines
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/:.*##/\t/'

setup: $(VENV)/.ready  ## a virtual environment with everything

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e ".[dev]"
	touch $@

demo: setup      ## train, tune, evaluate and predict on made-up seismic sections
	rm -rf $(DEMO)
	$(BIN)/whatwhere demo $(DEMO)

# OpenVINO brings threads and a heap of its own: its tests have a process to themselves.
ENGINES := tests/predict/test_choice.py tests/predict/test_openvino.py tests/test_quantizing.py

test: setup      ## the quick suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(ENGINES:%=--ignore=%)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" $(ENGINES)

test-slow: setup ## what takes long
	$(BIN)/pytest -m slow --timeout 3600

check: setup     ## format, lint, types, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

fix: setup       ## mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup     ## time it; rows go to benchmarks/results/
	$(BIN)/python benchmarks/run.py

bench-gpu: setup ## what a GPU makes of it, where there is one: a table within ten minutes
	$(BIN)/python benchmarks/gpu.py

sweep: setup     ## try a backbone of every family; makes a page of the documentation anew
	$(BIN)/python docs/sweep_backbones.py

docs: setup      ## the documentation site, strictly
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:           ## take away what was made
	rm -rf $(VENV) site docs/reference build dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
