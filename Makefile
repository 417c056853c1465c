# Everything a fresh machine needs: Python 3.11, make, gcc, git. Nothing is installed outside
# this folder: the environment is .venv, caches are in .cache.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HURRICANE_CACHE := $(CURDIR)/.cache/hurricane
export PIP_DISABLE_PIP_VERSION_CHECK := 1


.PHONY: demo test style types environment clean
.DEFAULT_GOAL := environment

environment: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: environment
	$(BIN)/hurricane demo

test: environment style
	$(BIN)/python -m pytest

style: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Fetches pyright's own program from the npm registry on first use.
types: environment
	$(BIN)/pyright

clean:
	rm -rf $(VENV) .cache build *.egg-info
