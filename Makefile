# Everything a fresh clone needs. `make help` lists the targets.

PYTHON ?= python3
PORT ?= 8000
HOST ?= 127.0.0.1
IMAGES ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := tests/compat/requirements.txt
MIN_PYTHON := 3.11

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the environment, in .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); Python $(MIN_PYTHON) or newer is needed: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Error: $(PYTHON) cannot make an environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt $(CLIENTS) | $(BIN)/python
	@echo "Installing into $(VENV): several minutes, about 7 GB with PyTorch" >&2
	@$(BIN)/python -m pip install --quiet --editable ".[dev,demo]" --editable ./client --constraint constraints.txt
	@$(BIN)/python -m pip install --quiet --no-deps --requirement $(CLIENTS)
	@touch $@

demo: setup ## search pictures at http://127.0.0.1:8000 (PORT=9000 IMAGES=folder)
	@$(BIN)/cots demo --host $(HOST) --port $(PORT) $(if $(IMAGES),--images "$(IMAGES)")

check: setup ## format, lint, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## check, then every test
	$(BIN)/python -m pytest

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure speed on this machine, into benchmarks/results
	$(BIN)/cots bench query --out benchmarks/results

clean: ## remove caches and build products; .venv and galleries stay
	rm -rf build dist client/dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
