# The commands of this project; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS ?=
BUDGET ?= 30m
STUDY ?= main
HELP_TEXT := examples/libreoffice-help/data
TESTS ?= tests
VENV := .venv/bin

.PHONY: help setup train test test-slow lint bench bench-gpu experiment clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup:  ## make .venv with Python 3.12 and install everything (once; PYTHON=… chooses the Python)
	@bash scripts/setup.sh

train: setup  ## train on the bundled languages, about 3 minutes on 2 cores (ARGS="--moo-method mean" changes a setting)
	@$(VENV)/megatron-moo train examples/quickstart.yaml $(ARGS)

test: setup  ## run the tests that need seconds; GPU tests are skipped without a GPU (TESTS=tests/unit ARGS="-k cagrad")
	@$(VENV)/python -m pytest -m "not slow" $(TESTS) $(ARGS)

test-slow: setup  ## run the tests that need minutes
	@$(VENV)/python -m pytest -m slow $(TESTS) $(ARGS) || { status=$$?; \
		if [ $$status -eq 5 ]; then echo "no slow test selected"; else exit $$status; fi; }

lint: setup  ## check style and types: ruff and mypy; no loader that may unpickle
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/python scripts/check_unpickling.py
	@$(VENV)/mypy megatron_moo

bench: setup  ## run the benchmarks of bench/ (ARGS="bench/one.py" runs one)
	@bash scripts/bench.sh $(ARGS)

experiment: setup  ## methods against tuned baselines over paired seeds, written to docs/results.md (BUDGET=30m|3h|overnight, STUDY=placebo|imbalance|larger)
	@test -d $(HELP_TEXT)/train || $(VENV)/megatron-moo data prepare libreoffice-help --out $(HELP_TEXT)
	@OMP_NUM_THREADS=1 $(VENV)/megatron-moo experiment --budget $(BUDGET) --study $(STUDY) --page docs/results.md $(ARGS)

bench-gpu: setup  ## measure the kernels on this machine's GPU (says so where there is none)
	@$(VENV)/python bench/gpu.py $(ARGS)

clean:  ## remove caches and build output; .venv/ and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
	@find . \( -path ./.venv -o -path ./.git -o -path ./runs \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
