.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests never use a network, and torch's threads must not spin against JAX's.
export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export TQDM_DISABLE := 1

.PHONY: help setup test lint types layers check

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## Make the environment in .venv

$(READY): pyproject.toml .constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch -c .constraints.txt
	$(BIN)/pip install --quiet -e ".[dev]" -c .constraints.txt
	touch $(READY)

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest

lint: $(READY)  ## Check style
	$(BIN)/ruff check .

types: $(READY)  ## Check types
	$(BIN)/pyright

layers: $(READY)  ## Check who imports whom
	$(BIN)/lint-imports

check: lint types layers test  ## All of it: exactly what CI runs
