# Needs only make, a Python of 3.9 to 3.15 with its venv module, and a package index; for Python 3.14
# and later also a C compiler, as long as not all packages that Salt needs have wheels for it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# `make PYTHON=python3.12 VENV=.venv312 test` tries another Python beside the first one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python3.14 \
	python3.9 python3.15; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info < (3, 16))' \
	2>/dev/null && echo $$python && break; done)
VENV ?= .venv
# Each test file is run by one of them, beside the others; the short ones of the pure parts last.
# Two more than there are cores, up to eight, as many tests wait for processes of Salt.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 6 ? n + 2 : 8)))
BY_FILE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The longest files are those with a master and minions, which wait most of the time: they begin,
# and those with several minions are spread (tests/conftest.py).
IN_ORDER := tests/integration tests/functional tests/unit
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

# Salt 3008 compiles one small package, timelib; without a compiler pip should settle for Salt 3007.
COMPILES := import os, shutil, sysconfig as s; \
	ready = shutil.which((s.get_config_var("CC") or "cc").split()[0]) \
	and os.path.exists(s.get_path("include") + "/Python.h"); \
	print("" if ready else "--only-binary=timelib")

NO_COMPILER := setup: some packages that Salt needs have no wheels for the newest Pythons (immutables \
	has none for 3.14), and there is no C compiler, or no Python.h: install both (on Debian: gcc \
	and python3-dev), or choose an older Python, for example PYTHON=python3.13

.PHONY: help demo unit test test-all matrix lint format docs changelog bench clean

help: ## show this list
	@echo 'Usage: make TARGET'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(READY) ## build, pack, unpack, relocate and serve a real Django release with Salt
	@PATH="$(abspath $(BIN)):$$PATH" demo/run.sh

unit: $(READY) ## the tests of the pure parts, in a minute
	@echo 'unit: pytest tests/unit, by $(WORKERS) workers'
	@$(BIN)/pytest -q -m 'not slow' -n $(WORKERS) --dist worksteal tests/unit

test: lint ## the checks, then all tests but the slow ones
	@echo 'test: pytest, without the slow ones, by $(WORKERS) workers'
	@$(BIN)/pytest -m 'not slow' $(BY_FILE) $(IN_ORDER)

test-all: lint $(DOCS_READY) ## the checks, then all tests, in an hour (ALL=1: each case and step, in hours)
	@echo 'test-all: pytest, by $(WORKERS) workers'
	@RELOCATE_TEST_THOROUGH=$(if $(ALL),all,1) $(BIN)/pytest $(BY_FILE) $(IN_ORDER)

matrix: ## the demo and the unit tests in fresh Debian roots, with each Python or none (SUITES=sid: one)
	@tests/matrix/run.sh $(SUITES)

lint: $(READY) ## ruff, mypy, and who imports whom
	@echo 'lint: ruff check, ruff format --check, mypy, lint-imports'
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@found=$$($(BIN)/lint-imports --no-logo --no-cache 2>&1) || { echo "$$found"; exit 1; }

format: $(READY) ## let ruff fix and format what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(DOCS_READY) ## build the documentation as a site, into docs/_build
	@$(BIN)/python docs/pillar.py
	@echo 'docs: sphinx-build -W docs docs/_build'
	@$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

changelog: $(DOCS_READY) ## show what the next release changes (VERSION=0.1.0: write it)
	@$(BIN)/towncrier build $(if $(VERSION),--yes --version $(VERSION),--draft --version next)

bench: $(READY) ## our speed and memory beside other tools, on a large tree (QUICK=1: a small one)
	@$(BIN)/python bench/relocate.py $(if $(QUICK),--quick)
	@$(BIN)/python bench/deploy.py $(if $(QUICK),--quick)
	@$(BIN)/python bench/pack.py $(if $(QUICK),--quick)
	@$(BIN)/python bench/bundle.py $(if $(QUICK),--quick)
	@$(BIN)/python bench/interpreter.py $(if $(QUICK),--quick)
	@$(BIN)/python bench/plots.py $(if $(QUICK),,docs/images)

clean: ## remove all that these targets made
	@echo 'clean: $(VENV), .bench, docs/_build, caches'
	@rm -rf $(VENV) .bench build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.py | python
	@echo 'setup: $(VENV) with Salt and the test tools, on '"$$($(PYTHON) -V)"' (a minute or two)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) --upgrade pip
	@only=$$($(BIN)/python -c '$(COMPILES)'); \
	$(BIN)/python $(PIP_INSTALL) $$only -e '.[test,lint]' || { \
	[ -z "$$only" ] || echo '$(NO_COMPILER)' >&2; exit 1; }
	@touch $@

$(DOCS_READY): $(READY)
	@echo "setup: Sphinx, into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

.PHONY: python
python:
	@$(if $(PYTHON),:,echo 'No Python of 3.9 to 3.15 with its venv module is on the PATH: install one \
	(on Debian: python3-venv) or name it with PYTHON=...' >&2; exit 1)
