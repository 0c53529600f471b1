PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test test-slow lint bench

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: venv
	$(BIN)/fhe-llm demo

test: venv
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: venv
	$(BIN)/python -m pytest -q -m "slow and not gpu"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: venv
	$(BIN)/fhe-llm bench --json
