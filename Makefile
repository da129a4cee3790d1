# make demo    set up, make 200 rows on the simulated endpoint, show five of them
# make test    set up, run all tests
# make lint    ruff and mypy
# make bench   what a call and an import cost; a few minutes, for an idle machine
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test quick lint bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/core
	rm -rf $(DEMO)
	$(BIN)/targen generate copa -n 200 --out $(DEMO) --simulate \
	  --set data.simulator.label_noise=0.1 --set data.simulator.corrector_error=0.02 \
	  --set data.simulator.malformed=0.05 --set data.simulator.error_rate=0.02
	$(BIN)/targen show $(DEMO) -n 5

test: $(VENV)/dev
	$(BIN)/python -m pytest -q -n auto --dist loadscope

quick: $(VENV)/dev
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/engine.py --json bench/results/engine.json

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

clean:
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache
