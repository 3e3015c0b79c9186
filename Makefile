# `make train` and `make test` set everything up by themselves. `make help` lists the rest.
#   PYTHON=python3.12             another interpreter for .venv
#   PIP_ARGS='--extra-index-url URL'    options for pip, say a second index with CPU builds of torch
#   RECIPE=two_digit_sums ARGS='--seed 1'    what `make train` trains, and flags for it

RECIPE ?= first_light
ARGS ?=
PIP_ARGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Every line of the maths is run by a test of it. Watching lines costs a third of the time: only those tests are watched.
MATHS := tests/exact tests/estimators tests/losses
COVERAGE := --cov=gradhat.exact --cov=gradhat.estimators --cov=gradhat.losses --cov-report=term-missing:skip-covered --cov-fail-under=100

BIN := .venv/bin
# A process for each core, of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
STAMP := .venv/.installed
UNFINISHED := .venv/.unfinished
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup model train test test-all mutants check format format-check lint types clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with the pinned packages

# A mark left behind means that an install was cut short. pip cannot tell half a package from a whole one: .venv is made anew.
$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; "$${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make setup: asked for Python 3.11 or newer, found $$("$${python:-python3}" --version 2>/dev/null || echo none)." \
			"Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test ! -e $(UNFINISHED) && $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear .venv
	@touch $(UNFINISHED)
	@echo "setting up .venv, some minutes the first time; torch comes first"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch setuptools
	@echo "installing what constraints.txt lists"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r constraints.txt || { \
		echo "make setup: a package could not be installed; pip says which, above. pycosat (of reasoning-gym) is compiled here:" \
			"it needs a C compiler and Python's headers (Debian: build-essential and python3-dev)." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@rm $(UNFINISHED) && touch $@

model: setup ## fetch the default language model into the cache
	@$(BIN)/python -c 'from gradhat.policies.language.weights import resolve; print("model:", resolve("smollm2-135m"))'

train: model ## train the default language model: RECIPE=..., ARGS='--flag value'
	$(BIN)/gradhat train $(RECIPE) $(ARGS)

test: model ## run the tests
	$(PYTEST) $(MATHS) $(COVERAGE)
	$(PYTEST) $(MATHS:%=--ignore=%)

test-all: model ## run every test that needs no GPU, the slow and the learning ones too
	$(PYTEST) -m "not gpu"

mutants: setup ## plant bugs: FILES="src/gradhat/training/text/*.py", ARGS="--share 0.25"; lists what no test notices
	$(BIN)/python tests/mutants.py $(FILES) $(ARGS)

check: format-check lint types test ## all that a change must pass: format, lint, types, tests

format: setup ## rewrite the files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: setup
	$(BIN)/ruff format --check .

lint: setup ## look for mistakes with ruff
	$(BIN)/ruff check .

types: setup ## check the types of src/ with pyright, strict
	$(BIN)/pyright --project .

clean: ## remove .venv and the caches; runs and the model stay
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
