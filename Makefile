# Two commands do everything on a fresh machine with Python 3.11+, pip, git and make:
#   make run    server and playground on the embedded model
#   make test   the tests
# Both set up .venv themselves; a second call starts in seconds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS := $(VENV)/.installed-for-tests
JOBS ?= 2
# One thread per test process: two processes with two threads each only fight over two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: run test test-slow check format bench eval-embedded install clean

run: $(STAMP)
	$(BIN)/darkroom serve

test: $(TESTS) sdks
	$(ONE_THREAD) $(BIN)/pytest -q -n $(JOBS) --dist loadfile -m "not slow and not gpu"

test-slow: $(TESTS) sdks
	$(ONE_THREAD) $(BIN)/pytest -q -m "slow and not gpu"

check: $(TESTS)
	$(BIN)/ruff format --check src tests training benchmarks tools
	$(BIN)/ruff check src tests training benchmarks tools
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

format: $(TESTS)
	$(BIN)/ruff check --fix src tests training benchmarks tools
	$(BIN)/ruff format src tests training benchmarks tools

bench: $(TESTS)
	$(BIN)/python -m benchmarks.startup

eval-embedded: $(TESTS)
	$(BIN)/python -m training.evaluate

install: $(TESTS)

# torch first and alone: pinned, so that pip takes the CPU build where one is provided.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[faces]"
	touch $(STAMP)

# What the tests need beside it. Not part of `make run`: some of it makes diffusers import more, and start later.
$(TESTS): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev,faces,postgres]"
	touch $(TESTS)

# The official SDKs the compatibility tests drive; skipped by the tests, with the reason, where they cannot be had.
.PHONY: sdks
sdks:
	@if [ -x tests/sdk/install.sh ]; then PYTHON=$(PYTHON) tests/sdk/install.sh; fi

clean:
	rm -rf $(VENV) .venvs node_modules .mypy_cache .ruff_cache .pytest_cache
