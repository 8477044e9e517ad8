# Two commands set everything up on a machine with git, make and Python: `make train` and `make test`.
# Each makes the environment .venv, installs what it needs (once; again when pyproject.toml changes), and runs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Errors are shown, and warnings but one: setuptools draws a box around the news that an editable installation is one.
PIP    := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip --disable-pip-version-check --quiet
OUT    ?= runs/lenet5
REPORT ?= runs/gpu-report
EXTRA  ?= test
CASES  ?= all
# Processes that tests are shared out to; WORKERS= runs them in one.
WORKERS ?= --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help train test test-all quick compiled-test gpu-test gpu-report lint bench docs clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "make %-13s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "gpuconv needs Python 3.10 or newer; try: make PYTHON=python3.12" >&2; exit 2; }
	@echo "making the environment $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip

$(VENV)/.cli: pyproject.toml | $(BIN)/python
	@echo "installing gpuconv and what it needs into $(VENV): a minute, more on a slow network; once"
	@$(PIP) install --editable '.[cli]'
	@touch $@

$(VENV)/.$(EXTRA): pyproject.toml | $(BIN)/python
	@echo "installing gpuconv and what its tests need into $(VENV): some minutes; once"
	@$(PIP) install --editable '.[$(EXTRA)]'
	@touch $@

train: $(VENV)/.cli  ## train LeNet-5 on the bundled digits into runs/lenet5 (a new run continues where one was stopped)
	$(BIN)/gpuconv train --out $(OUT) --resume

test: $(VENV)/.$(EXTRA)  ## every test, with a sample of large grids of cases; then the built wheel: seven to eight minutes on two cores
	$(BIN)/python -m pytest $(WORKERS) --cases=sample
	$(BIN)/python tests/check_wheel.py

# CASES=rest leaves out what `make test` has run already, just as it would be run again.
test-all: $(VENV)/.$(EXTRA)  ## every test in every case: three quarters of an hour on two cores
	$(BIN)/python -m pytest $(WORKERS) --cases=$(CASES)

quick: $(VENV)/.$(EXTRA)  ## some cases of each test that is not slow, up to the first failure: a minute
	$(BIN)/python -m pytest $(WORKERS) --cases=few -x

# Arguments for pytest, as there: make compiled-test ARGS="-k depthwise"
compiled-test: $(VENV)/.$(EXTRA)  ## all tests of CUDA kernels on what the compiler makes of them, interpreted: an hour or more
	NUMBA_ENABLE_CUDASIM=0 $(BIN)/python -m pytest $(ARGS) tests/kernels/test_*kernels.py

# In the environment of PYTHON, which has to have PyTorch, numba-cuda and CuPy for its driver: installing these is a
# choice of versions. Without conftest.py, which needs more than that. Arguments for pytest: make gpu-test ARGS="-k lenet"
gpu-test:  ## on a machine with a GPU: kernels at real sizes, training, compute-sanitizer
	@$(PYTHON) -c 'import gpuconv.kernels' 2>/dev/null || { echo "gpuconv is not installed for $(PYTHON); try: $(PYTHON) -m pip install --no-deps --no-build-isolation -e ." >&2; exit 2; }
	NUMBA_ENABLE_CUDASIM=0 $(PYTHON) -m pytest --noconftest -m gpu -W default -W error:::gpuconv $(ARGS) tests/test_gpu.py

# Offline, in the environment of PYTHON, as gpu-test. REPORT is the folder; make gpu-report ARGS="--only training"
gpu-report:  ## on a machine with a GPU: what there is to know of it in eight minutes, into runs/gpu-report
	$(PYTHON) -m bench.gpu_report --out $(REPORT) $(ARGS)

lint: $(VENV)/.dev  ## formatting, lint and types, as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent tests/support/typed_program.py

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing gpuconv and what its development needs into $(VENV): some minutes; once"
	@$(PIP) install --editable '.[dev]'
	@touch $@

# For more Pythons than that of .venv: make dist DIST_FOR="python3.10 python3.13"
.PHONY: dist
dist: $(VENV)/.dev  ## sdist and wheel into dist/, each installed with its dependencies in an environment of its own, and used
	rm -rf dist
	$(BIN)/python tests/check_wheel.py --dist dist $(foreach python,$(DIST_FOR),--python $(python))

bench: $(VENV)/.cli  ## LeNet's training and inference, images/s
	$(BIN)/python -m bench.lenet

# With the network that the site's explorer shows, trained for a few epochs. Strict: a dead link or anchor is an error.
docs: $(VENV)/.docs  ## the documentation as a site, into site/: two minutes or so on two cores
	$(BIN)/python docs/website/drawings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --quiet --config-file docs/website/mkdocs.yml
	@echo "site/index.html is the start"

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "installing gpuconv and what its documentation needs into $(VENV): a minute or two; once"
	@$(PIP) install --editable '.[docs]'
	@touch $@

clean:  ## remove the environment and what builds and tools left
	rm -rf $(VENV) .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
