.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test test-slow test-gpu peers test-peers bench bench-peers faults contract lock lint types layers check serve worker

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY)  ## Make the environment in .venv

$(READY): pyproject.toml .constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch -c .constraints.txt
	$(BIN)/pip install --quiet -e ".[dev]" -c .constraints.txt
	touch $(READY)

demo: $(READY)  ## Train three SAEs through the service and show them (about 6 minutes)
	$(BIN)/sae-service demo --output demo_output

serve: $(READY)  ## Run the service on this machine (options: ARGS="--port 8001")
	$(BIN)/sae-service serve $(ARGS)

worker: $(READY)  ## Run one more worker (options: ARGS="--queue large")
	$(BIN)/sae-service worker $(ARGS)

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/integration
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/e2e tests/faults

test-slow: $(READY)  ## Run the tests that take long and say little that others do not
	$(BIN)/python -m pytest -m slow tests/unit tests/integration tests/e2e

test-gpu: $(READY)  ## Run the check that needs a GPU, and print its figures
	$(BIN)/python -m pytest tests/gpu -s

peers: $(READY)  ## Make .venv-peers, with SAELens, dictionary_learning and sparsify
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet torch sae-lens==6.54.12 nnsight natsort schedulefree -c .constraints.txt
	.venv-peers/bin/pip install --quiet --no-deps dictionary-learning==0.1.0 eai-sparsify==1.3.3

test-peers: peers  ## Check our files with the libraries that read and write the same
	$(BIN)/python -m pytest $(addprefix tests/integration/test_,saelens.py dictionary_learning.py sparsify.py)

bench: $(READY)  ## Measure the model's pass, the cache, cohorts, precision and growth on this machine (about half an hour)
	for name in model_pass cached cohorts precision growth; do $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

bench-peers: peers  ## Measure the step and whole jobs beside those of SAELens and dictionary_learning (about an hour)
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.end_to_end

faults: $(READY)  ## Kill, cut, fill and lock everything for two hours or three (options: KILLS=100 JOBS=20 SEED=1 ARGS="-k disk")
	test -x .venv-faults/bin/python || $(PYTHON) -m venv .venv-faults
	.venv-faults/bin/pip install --quiet "moto[server]==5.2.5" swift==2.38.3
	FAULTS_KILLS=$(or $(KILLS),100) FAULTS_JOBS=$(or $(JOBS),20) FAULTS_SEED=$(or $(SEED),$(shell date +%s)) $(BIN)/python -m pytest tests/faults -m "" -s -v $(ARGS)

contract: $(READY)  ## Try each operation of the REST interface with schemathesis (about 10 minutes)
	test -x .venv-contract/bin/st || $(PYTHON) -m venv .venv-contract
	.venv-contract/bin/pip install --quiet schemathesis==4.32.5
	$(BIN)/python -m pytest -m slow tests/e2e/test_contract.py

LOCK = .venv-lock/bin/uv pip compile pyproject.toml docker/build.txt --extra tracing --python-version 3.12 \
	--python-platform x86_64-manylinux_2_28 --constraint .make/tested.txt --generate-hashes --no-annotate --quiet --no-header

lock: $(READY)  ## Write docker/*.lock: what the images hold, at the versions of .venv, those that the tests have run with
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv)
	mkdir -p .make
	$(BIN)/pip freeze --exclude-editable | grep '==' | sed 's/+cpu$$//' > .make/tested.txt
	$(LOCK) --override docker/api.overrides.txt --output-file docker/api.lock
	$(LOCK) --extra cuda --output-file docker/worker.lock

lint: $(READY)  ## Check style
	$(BIN)/ruff check .

types: $(READY)  ## Check types
	$(BIN)/pyright

layers: $(READY)  ## Check who imports whom
	$(BIN)/lint-imports

check: lint types layers test  ## All of it: exactly what CI runs
