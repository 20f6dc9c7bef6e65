# Everything runs inside .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
# That run tests at a time; each takes a core and a gigabyte.
PROCESSES ?= 2
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
QUICK := -m "not slow and not gpu" -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Positions, layers, data, metrics, results, memory: what needs no model and starts no process.
FAST ?= tests/eval/core tests/eval/metrics tests/plan tests/model/test_v2pe.py tests/test_layers.py \
	$(filter-out %_loader.py %_labels.py %_video.py %_video_opening.py, $(wildcard tests/data/test_*.py))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-all test-oldest test-newest test-vllm lint type docs notebook bench \
	gpu-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Some of its releases need Python 3.11; for 3.10 the newest in the ranges are taken.
LOCK = $(shell $(PYTHON) -c 'import sys; print("requirements-lock.txt" if sys.version_info >= (3, 11) else "/dev/null")')

# What requirements.txt and requirements-dev.txt ask for, in the releases that a file names.
define INSTALL
$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), f"Python 3.10 or newer is needed, this is {sys.version}"'
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --upgrade "pip>=24" >/dev/null
PIP_CONSTRAINT=$(1) $(BIN)/python -m pip install torch
PIP_CONSTRAINT=$(1) $(BIN)/python -m pip install -r requirements.txt -r requirements-dev.txt
$(BIN)/python -m pip install --no-deps --no-build-isolation -e . || $(BIN)/python -m pip install --no-deps -e .
touch $@
endef

$(STAMP): requirements.txt requirements-dev.txt requirements-lock.txt pyproject.toml setup.py
	$(call INSTALL,$(LOCK))

.venv-%/.installed: VENV = .venv-$*
.venv-%/.installed: requirements.txt requirements-dev.txt requirements-%.txt pyproject.toml setup.py
	$(call INSTALL,requirements-$*.txt)

$(DOCS_STAMP): $(STAMP) requirements-docs.txt
	$(BIN)/python -m pip install -r requirements-docs.txt
	touch $(DOCS_STAMP)

setup: $(STAMP)  ## create .venv and install everything

demo: $(STAMP)  ## fine-tune and evaluate a tiny V2PE model on the CPU (work_dirs/demo/index.html)
	PYTHON=$(BIN)/python sh scripts/demo.sh

test: $(STAMP)  ## run the tests, files of them at a time in PROCESSES=2 processes
	$(PYTEST) $(QUICK) --durations=15

test-fast: $(STAMP)  ## run those of a minute, for the time between two edits, or others: FAST="tests/infer"
	$(PYTEST) $(QUICK) -q $(FAST)

test-all: $(STAMP)  ## run all tests that this machine can run, slow ones too
	$(PYTEST) --durations=15 --hypothesis-profile thorough

test-oldest: VENV = .venv-oldest
test-oldest: .venv-oldest/.installed  ## run the tests with the oldest torch and transformers (requirements-oldest.txt)
	$(PYTEST) $(QUICK)

test-newest: VENV = .venv-newest
test-newest: .venv-newest/.installed  ## run the tests with the newest ones (requirements-newest.txt)
	$(PYTEST) $(QUICK)

test-vllm: $(STAMP)  ## serve tiny checkpoints in vLLM on the CPU and compare (integrations/vllm; installs 3 GB there)
	PYTHON=$(CURDIR)/$(BIN)/python VLLM_PYTHON=$(PYTHON) sh integrations/vllm/test.sh

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## check types
	$(BIN)/mypy internvl eval studies

docs: $(DOCS_STAMP)  ## build the documentation site (work_dirs/site/index.html); a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

notebook: $(STAMP)  ## execute examples/v2pe_in_ten_minutes.ipynb, in two minutes
	$(PYTEST) -q tests/test_notebook.py

bench: $(STAMP)  ## run the benchmarks (results are printed; see benchmarks/)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

gpu-check: $(STAMP)  ## run what only a GPU can show, in 10 minutes (docs/gpu.md); without one tiny, on the CPU
	$(BIN)/python -m benchmarks.gpu_check

clean:  ## remove what was built or trained here (keeps .venv)
	rm -rf work_dirs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
