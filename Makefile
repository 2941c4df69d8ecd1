# make demo   set up, compress the bundled model, evaluate, report
# make test   set up, run all tests
# make test-fast   without the slow ones: what to run on every change
# make lint   ruff and mypy
# make docs   the site, in build/site

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast lint docs clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q $(shell grep '^torch==' constraints.txt) -c constraints.txt
	$(BIN)/pip install -q -e '.[data,test,lint]' -c constraints.txt
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python scripts/demo.py out/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest -m 'not slow'

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) out build *.egg-info
