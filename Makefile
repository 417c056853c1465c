# Everything a fresh machine needs: Python 3.11, make, gcc, git. Nothing is installed outside
# this folder: the environment is .venv, caches are in .cache.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HURRICANE_CACHE := $(CURDIR)/.cache/hurricane
export PIP_DISABLE_PIP_VERSION_CHECK := 1


.PHONY: demo test quick style types protocol-page results-page environment clean
.DEFAULT_GOAL := environment

environment: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: environment
	$(BIN)/hurricane demo

test: style quick
	$(BIN)/python -m pytest -m process

# Without tests that start processes, train or compute for seconds; on all cores.
quick: environment
	$(BIN)/python -m pytest -m "not process" --numprocesses auto

style: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Fetches pyright's own program from the npm registry on first use.
types: environment
	$(BIN)/pyright

# Pages of the docs that are written by scripts; tests compare them.
protocol-page: environment
	$(BIN)/python tools/protocol_page.py

results-page: environment
	$(BIN)/python tools/results_page.py

clean:
	rm -rf $(VENV) .cache build *.egg-info
