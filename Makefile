PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A file's tests share processes they started, so a file is run by one worker.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

RESULTS := docs/results
PLAINTEXT ?=
PROXY_BENCHES := decode prefill concurrency memory overhead calibrate
LOCAL_BENCHES := plaintext product width

# The extra that fits the driver: make test-gpu CUDA=cuda12
CUDA ?= cuda13
# The model in the clear on the same GPU; bench-gpu does without where it cannot be installed.
GPU_PLAINTEXT ?= torch transformers accelerate
# A machine without a registry: make test-gpu bench-gpu WHEELS=FOLDER uses PYTHON as it is, and what lies in the folder.
WHEELS ?=

.PHONY: gpu-packages gpu-plaintext venv clean demo test test-slow test-notebooks test-langchain test-gpu lint bench bench-gpu performance performance-page

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
	$(PYTEST) -m "not slow and not gpu"

test-slow: venv
	$(PYTEST) -m "slow and not gpu" --ignore=tests/test_notebooks.py

# Every notebook, top to bottom, in a fresh kernel.
test-notebooks: venv
	$(BIN)/python -m pytest -q tests/test_notebooks.py

# The lowest langchain-core we declare and the newest there is, each in a fresh environment.
test-langchain:
	bash .ci/langchain

# On a machine with a GPU: everything that needs one, with a record of what ran. It says what is missing before it begins.
ifeq ($(WHEELS),)
ON_GPU := $(BIN)/python benchmarks/on_gpu.py
test-gpu: gpu-packages
bench-gpu: gpu-packages gpu-plaintext
else
ON_GPU := $(PYTHON) benchmarks/on_gpu.py --wheels $(WHEELS)
endif

test-gpu:
	$(ON_GPU) tests

bench-gpu:
	$(ON_GPU) bench

gpu-packages:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable ".[dev,$(CUDA)]" || { \
		echo "cannot install the packages for the GPU: pip says why above. Without a registry, put their wheels into a folder" \
			"and add WHEELS=FOLDER." >&2; exit 1; }

gpu-plaintext: gpu-packages
	@test -z "$(GPU_PLAINTEXT)" || $(BIN)/python -m pip install --quiet $(GPU_PLAINTEXT) || \
		echo "without $(GPU_PLAINTEXT) the model in the clear runs on the CPU" >&2

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
