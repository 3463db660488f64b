# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

PEERS := .venv-peers
PEERS_NEED := simulations/tacit_simulations/benchmarks/peers/requirements.txt
PEERS_READY := $(PEERS)/.installed

.PHONY: help demo test test-fast system lint types contracts check bench bench-deploy bench-peers docs clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray,dev]"
	$(BIN)/python -m compileall -q common client server simulations
	@touch $@

demo: $(READY) ## Pretrain an encoder over five simulated sites under DP, and report
	$(BIN)/tacit simulate digits

test: $(READY) ## All tests but the longest, the fast ones first (fifteen minutes on two cores)
	$(BIN)/python -m pytest -q -m "not slow and not system"
	$(BIN)/python -m pytest -q -m "(slow or system) and not long_system"

test-fast: $(READY) ## The fast tests alone
	$(BIN)/python -m pytest -q -m "not slow and not system"

system: $(READY) ## Every test of whole processes, those that take long too
	$(BIN)/python -m pytest -q -m system

lint: $(READY) ## Style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Types (mypy strict)
	$(BIN)/mypy

contracts: $(READY) ## Who may import whom (import-linter)
	$(BIN)/lint-imports

check: lint types contracts test ## Everything that the gate runs, but the demo

bench: $(READY) ## Measure speed and memory; writes benchmarks/results (half an hour on two quiet cores)
	$(BIN)/python -m tacit_simulations.benchmarks

bench-deploy: $(READY) ## Measure a deployed round, and 100 MB both ways, on loopback
	$(BIN)/python -m tacit_simulations.benchmarks deploy

$(PEERS_READY): $(PEERS_NEED)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement $(PEERS_NEED)
	@touch $@

bench-peers: $(READY) $(PEERS_READY) ## Measure Flower, pfl and plain loops beside Tacit, in their own .venv-peers
	$(BIN)/python -m tacit_simulations.benchmarks.peers --python $(PEERS)/bin/python

docs: $(READY) ## Write the parts of docs/ that are built from the code
	$(BIN)/python docs/build.py
	$(BIN)/python deploy/build.py

clean: ## Forget the environment and all caches; runs/ stays
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
