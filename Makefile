# make demo    set up, make 200 rows on the simulated endpoint, show five of them
# make test    set up, run all tests
# make lint    ruff and mypy
# make bench   how fast it is, beside two others; under 15 minutes, for an idle machine
#
# test-long, soak (30 minutes) and bench-full (two hours) are for whoever changes the engine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'
DEMO := runs/demo
# Tests wait for servers and processes as long as they compute.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 3 / 2 )))

.PHONY: demo test quick test-long lint bench bench-full soak clean
.DEFAULT_GOAL := demo

demo: $(VENV)/core
	rm -rf $(DEMO)
	$(BIN)/targen generate copa -n 200 --out $(DEMO) --simulate \
	  --set data.simulator.label_noise=0.1 --set data.simulator.corrector_error=0.02 \
	  --set data.simulator.malformed=0.05 --set data.simulator.error_rate=0.02
	$(BIN)/targen show $(DEMO) -n 5

# Where PyTorch is in .venv the rest of the extra `train` is put beside it, and the tests of training
# run; where it is not, they are skipped and say so.
test: $(VENV)/dev
	@! $(TORCH) || $(MAKE) --no-print-directory $(VENV)/train
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope -m "not long"

quick: $(VENV)/dev
	$(BIN)/python -m pytest -q -m "not slow and not long"

test-long: $(VENV)/dev
	@! $(TORCH) || $(MAKE) --no-print-directory $(VENV)/train
	$(BIN)/python -m pytest -q -n auto --dist loadscope -m long --timeout 7200

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench
	$(BIN)/python bench/peers/setup.py openai_sdk curator_rows
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/report.py

bench-full: $(VENV)/bench
	$(BIN)/python bench/peers/setup.py
	$(BIN)/python bench/report.py --full

soak: $(VENV)/bench
	$(BIN)/python bench/soak.py

# A stamp a set of packages: made again when pyproject.toml changes.
$(VENV)/core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "targen-async needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/train: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,train,lora,plots]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) bench/.venvs runs build dist .mypy_cache .ruff_cache .pytest_cache
