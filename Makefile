# Every target sets up what it needs; nothing but Python 3.10-3.12, git and make is assumed.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo

.PHONY: setup demo test check fmt bench cluster-test lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	touch $@

demo: setup ## the main job on the shipped dataset, with the embedded teachers, without network
	$(BIN)/molmoact demo --output-path $(OUT) --overwrite

test: check ## lint, types, tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark that needs no GPU, one after the other
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

cluster-test: setup ## a real Flink cluster on this machine; one line where its jars cannot be had
	@$(BIN)/python -m scripts.flink.distribution; case $$? in \
		0) MOLMOACT_CLUSTER_TEST=1 $(BIN)/python -m pytest -m flink tests/test_pipelines_flink.py \
			--log-cli-level=INFO --log-cli-format='%(asctime)s %(message)s' --log-cli-date-format=%H:%M:%S ;; \
		75) ;; \
		*) exit 1 ;; \
	esac

lock: setup ## resolve the pins again
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
		--generate-hashes --no-emit-index-url --no-header -o requirements.lock

clean:
	rm -rf $(VENV) out runs build dist .mypy_cache .ruff_cache .pytest_cache
