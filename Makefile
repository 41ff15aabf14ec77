# make demo   the main job on phantoms, from nothing        make test   lint, types and tests, from nothing
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

demo: .venv/.installed
	rm -rf runs/demo
	$(BIN)/python run_rl.py train --config configs/spars/demo.yaml --out runs/demo
	$(BIN)/python run_rl.py evaluate --run runs/demo

lint: .venv/.installed-test
	$(BIN)/ruff check .
	mkdir -p .typing && ln -sfn .. .typing/segarena
	MYPYPATH=.typing $(BIN)/mypy

test: lint
	$(BIN)/pytest

clean:
	rm -rf .venv .typing build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
