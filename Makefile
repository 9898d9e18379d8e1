.PHONY: setup run check dashboards test test-sglang format bench
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# One environment for everything. torch 2.13.0 first, so that nothing later pulls in another build;
# GPU users set TORCH to the build they want, or install it into the environment beforehand.
TORCH ?= torch==2.13.0
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

setup: $(BIN)/.ready

# Serves the demo model and asks it one question; ONCE=1 ends after the answer.
run: setup
	scripts/run.sh $(abspath $(BIN))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m replicas.metrics --check
	$(BIN)/python -m orchestrator.config_page --check
	$(BIN)/python -m dashboards.build --check
	$(BIN)/python scripts/readme_tree.py --check

# Every query of every board and rule against a real Prometheus (Debian's package `prometheus`).
dashboards: setup
	$(BIN)/python -m dashboards.build
	$(BIN)/python -m dashboards.verify

test: setup
	$(BIN)/pytest

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/readme_tree.py

bench: setup
	$(BIN)/python -m benchmarks.modes

# SGLang without a GPU, in an environment of its own: its pins differ from ours.
SGLANG_VENV ?= .venv-sglang
$(SGLANG_VENV)/.ready: scripts/setup_sglang_cpu.sh $(wildcard replicas/sglang_engine/cpu/*)
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/setup_sglang_cpu.sh $(SGLANG_VENV)

test-sglang: $(SGLANG_VENV)/.ready
	$(SGLANG_VENV)/bin/python -m pytest tests/replicas/sglang_engine
	$(SGLANG_VENV)/bin/python -m pytest -m sglang tests/replicas/test_engine_contract.py \
		tests/serve/test_z_sglang.py
