PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

RESULTS := docs/results
PLAINTEXT ?=
PROXY_BENCHES := decode prefill concurrency memory overhead calibrate
LOCAL_BENCHES := plaintext product width

# The extra that fits the driver: make test-gpu CUDA=cuda12
CUDA ?= cuda13

.PHONY: venv clean demo test test-slow test-notebooks test-langchain test-gpu lint bench bench-gpu performance performance-page

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Compiled kernels do not notice a change in another file than their own.
clean:
	find fhe_llm server tests -name "*.nb[ic]" -delete

demo: venv
	$(BIN)/fhe-llm demo

test: venv
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: venv
	$(BIN)/python -m pytest -q -m "slow and not gpu" --ignore=tests/test_notebooks.py

# Every notebook, top to bottom, in a fresh kernel.
test-notebooks: venv
	$(BIN)/python -m pytest -q tests/test_notebooks.py

# The lowest langchain-core we declare and the newest there is, each in a fresh environment.
test-langchain:
	bash .ci/langchain

# On a machine with a GPU: everything that needs one, with a record of what ran.
test-gpu: venv
	$(BIN)/python -m pip install --quiet --editable ".[dev,$(CUDA)]"
	$(BIN)/python -m pytest -q -m gpu --require-gpu --gpu-record=$(RESULTS)/gpu-tests.json

bench-gpu: venv
	$(BIN)/python -m pip install --quiet --editable ".[dev,$(CUDA)]"
	$(BIN)/python benchmarks/gpu.py --output $(RESULTS)/gpu.json
	for name in decode prefill concurrency; do \
		FHE_LLM_DEVICE=cuda $(BIN)/fhe-llm bench $$name --output $(RESULTS)/gpu-$$name.json || exit 1; \
	done

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: venv
	$(BIN)/fhe-llm bench --json

# Measures everything and writes the page; the plaintext side is transformers where torch is installed:
# make performance PLAINTEXT="torch transformers accelerate"
performance: venv
	test -z "$(PLAINTEXT)" || $(BIN)/python -m pip install --quiet $(PLAINTEXT)
	for name in $(LOCAL_BENCHES) $(PROXY_BENCHES); do \
		$(BIN)/fhe-llm bench $$name --output $(RESULTS)/$$name.json || exit 1; \
	done
	$(BIN)/python benchmarks/make_performance_page.py

performance-page: venv
	$(BIN)/python benchmarks/make_performance_page.py
