# Everything a contributor runs; `make` alone lists it. The tools live in .venv, which `make install` makes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all bench lint format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv and install latentbits with its tools into it

# torch goes first and alone: its version decides which build pip takes, and deepspeed looks for it while it is built.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch into .venv (1 of 2)"
	@$(PIP) $$(grep '^torch==' constraints.txt)
	@echo "installing latentbits and its tools into .venv (2 of 2)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## train, encode and index the docstrings on this machine
	$(BIN)/latentbits demo

# Two at once, as much of a test's time is waiting for processes to start; a file's tests stay together.
test: install ## run the tests, except the slow ones
	$(BIN)/pytest -m 'not slow' -n 2 --dist loadfile

test-all: install ## run every test
	$(BIN)/pytest

bench: install ## measure against other libraries: make bench ONLY=name for one
	@$(PIP) -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.bench $(ONLY)

lint: install ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
