# Commands for development. `make demo` and `make test` need only Python 3.11+ on a fresh clone.
PYTHON ?= python3
OUT ?= benchmarks/gpu
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
READY := $(VENV)/.ready
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help demo setup test test-all test-gpu test-engines test-lowest check format docs package bench gpu torture clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## train micro, shuffled and global with three seeds each, and compare them
	$(BIN)/moebench sweep study=demo
	$(BIN)/moebench report --study demo

setup: $(DEV) ## create .venv with moebench and the development tools

$(READY): pyproject.toml constraints.txt
	@echo "installing moebench into $(VENV) (torch first, from constraints.txt)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: moebench needs Python 3.11 or newer; choose one, as in make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(DEV): $(READY)
	@echo "installing the development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@

test: $(DEV) test-gpu ## run the tests, except the slow ones
	$(BIN)/pytest -m "not slow" -n auto --dist worksteal

test-gpu: $(DEV) ## run the tests of a GPU, on a pretended one where there is none
	$(BIN)/pytest -m gpu -n auto --dist worksteal -p tests.pretended_gpu.plugin

test-engines: $(DEV) ## run sweeps on SLURM, Ray and the other engines, as far as this machine has them
	$(BIN)/pytest tests/engines -n 0 -rs

test-all: $(DEV) test-gpu ## run all tests
	$(BIN)/pytest -n auto --dist worksteal

test-lowest: $(DEV) ## run the tests with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable '.[dev,huggingface]'
	$(LOWEST)/bin/python -m pytest -m "not slow" -n auto --dist worksteal

check: $(DEV) ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	printf '%s\n' 'moebench benchmarks' tests | xargs -P 2 -L 1 $(BIN)/pyright
	$(BIN)/lint-imports

format: $(DEV) ## fix lint and formatting where tools can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## build the documentation site into site/
	@$(PIP) --editable '.[docs]'
	$(BIN)/python docs/build_site.py
	@echo "open site/index.html; to search, run $(BIN)/python -m http.server --directory site"

package: $(READY) ## build sdist and wheel into dist/, and check them
	@$(PIP) --editable '.[package]'
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

bench: $(READY) ## measure speed on this machine and compare with others (benchmarks/README.md)
	@$(PIP) --editable '.[bench]'
	$(BIN)/moebench bench
	$(BIN)/python benchmarks/race.py --compile --memory
	$(BIN)/python benchmarks/stack.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/study.py
	$(BIN)/python benchmarks/balance_loss.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/startup.py

gpu: ## measure all on this machine's GPU, in MINUTES=8 or to the end (benchmarks/README.md)
	@$(PYTHON) benchmarks/gpu.py --minutes "$(MINUTES)" --out "$(OUT)"

torture: $(DEV) ## break every promise of docs/reliability.md, for hours; it can be interrupted
	$(BIN)/python -m tests.torture --numbers docs/reliability.json
	$(BIN)/python docs/reliability.py

clean: ## remove what the other targets made, except runs/
	rm -rf $(VENV) $(LOWEST) dist build site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
