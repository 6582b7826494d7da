# Every target sets up what it needs; nothing but Python 3.11-3.13, git and make is assumed.
SHELL := /bin/bash
# Empty: scripts/find_python.sh looks for 3.12, then 3.13, then 3.11.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
PYTEST := $(BIN)/python -m pytest --durations=15 --durations-min=1

.PHONY: help setup demo loop test test-fast check fmt bench fuzz cluster-test libero-env libero-test vllm-env vllm-test wheel-test lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## the virtual environment, with every dependency as locked

$(VENV)/.ready: requirements.lock pyproject.toml scripts/setup.sh scripts/find_python.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	touch $@

demo: setup ## the main job on the shipped dataset, with the embedded teachers, without network
	$(BIN)/molmoact demo --output-path $(OUT) --overwrite

LOOP ?= out/loop
LOOP_SIZE ?= full
loop: setup ## demonstrations -> labels -> a small model -> success rates (hours); LOOP_SIZE=debug: minutes
	$(BIN)/python scripts/close_the_loop.py $(LOOP) --size $(LOOP_SIZE)

test: check ## lint, types, every test that needs no environment or cluster of its own
	$(PYTEST) -n 2 --dist loadfile -m "not flink and not libero and not browser"
	$(PYTEST) -m browser -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

test-fast: setup ## the tests that take a second or less each
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not flink and not browser and not gpu"

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup ## format, and mend what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark that needs no GPU, one after the other
	set -e; for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file; done

COUNT ?= 1000
SEED ?= 0
fuzz: setup ## thousands of broken inputs: each is one line, or right; COUNT of every kind
	PYTHONPATH=.:tests $(BIN)/python -m fuzz --count $(COUNT) --seed $(SEED)

cluster-test: setup ## a real Flink cluster on this machine; one line where its jars cannot be had
	@$(BIN)/python -m scripts.flink.distribution; case $$? in \
		0) MOLMOACT_CLUSTER_TEST=1 $(BIN)/python -m pytest -m flink tests/test_pipelines_flink.py \
			--log-cli-level=INFO --log-cli-format='%(asctime)s %(message)s' --log-cli-date-format=%H:%M:%S ;; \
		75) ;; \
		*) exit 1 ;; \
	esac

libero-env: ## LIBERO in a Python of its own (.venv-libero, 2.4 GB); one line where its packages cannot be had
	@bash scripts/libero/setup.sh

libero-test: setup ## recorded roll-outs in the real LIBERO end as recorded
	@bash scripts/libero/setup.sh; case $$? in \
		0) $(BIN)/python -m pytest -m libero tests/test_robot_libero.py ;; \
		75) ;; \
		*) exit 1 ;; \
	esac

vllm-env: ## vLLM's CPU build and our plug-in in a Python of its own (.venv-vllm, 8 GB); one line where it cannot be had
	@bash scripts/vllm/setup.sh

vllm-test: setup ## vLLM writes our own answers, token by token, and none that is no action
	@bash scripts/vllm/setup.sh; case $$? in \
		0) $(BIN)/python -m pytest -m vllm tests/test_robot_vllm.py ;; \
		75) ;; \
		*) exit 1 ;; \
	esac

wheel-test: setup ## the built wheel reads an output with [read] alone: no Beam, no torch
	VENV=$(VENV) bash scripts/wheel_test.sh

lock: setup ## resolve the pins again
	$(BIN)/python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header -o requirements.lock

clean: ## forget what was built, run and measured
	rm -rf $(VENV) out runs build dist .mypy_cache .ruff_cache .pytest_cache
