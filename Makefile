# From nothing, in an environment of its own (.venv):
#   make demo   the main job on phantoms     make test   lint, types and tests     make docs   the site of docs/
PYTHON ?= python3
BIN := .venv/bin
# processes of the tests; each computes with one thread
WORKERS ?= 2

.PHONY: demo test lint docs clean

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

demo: .venv/.installed
	rm -rf runs/demo
	$(BIN)/python run_rl.py train --config spars/search --config spars/demo --out runs/demo
	$(BIN)/python run_rl.py evaluate --run runs/demo

.typing:
	mkdir -p $@ && ln -sfn .. $@/segarena

lint: .venv/.installed-test .typing
	$(BIN)/ruff check .
	MYPYPATH=.typing $(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

docs: .venv/.installed-docs .typing # a warning is an error; the site is site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .typing build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
