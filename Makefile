# Every target does all set-up from nothing: it needs only make and Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
export OMP_NUM_THREADS := 1

.PHONY: run test integration check docs linkcheck venv lint clean

run: $(BASE)  ## train a routed and a naive agent, print a table, draw a figure
	$(BIN)/routed-rl quickstart

test: venv lint docs  ## fast tests, lint, types, import contracts, documentation
	$(BIN)/pytest

integration: venv  ## tests of pages in a browser, an installed wheel, notebooks, several processes, killed studies, compiling
	$(BIN)/pytest -m integration

check: venv  ## the slow reproductions: about eight hours on two cores; goes on where it was stopped
	$(BIN)/pytest -m slow

docs: venv  ## the documentation site, in dist/docs; a warning is an error
	$(BIN)/python -m sphinx -E -q -W --keep-going -b html docs dist/docs

linkcheck: venv  ## try every link of the documentation to another site; needs the network
	$(BIN)/python -m sphinx -E -q -b linkcheck docs dist/linkcheck

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

venv: $(DEV)

$(BASE) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "routed_rl needs Python 3.11 or later, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '$(if $(filter $(DEV),$@),.[dev],.)'
	touch $(BASE) $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
