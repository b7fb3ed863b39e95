# make run | test | check | bench. Each prepares .venv first and does nothing there when the lock is unchanged.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach v,3.14 3.13 3.12 3.11,$(shell python$(v) -c 'import venv, ensurepip; print("python$(v)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup run test check bench lint types docs generate lock dist clean

help:
	@printf '%s\n' \
	  'make run     set up and show the demo: real clients, real pipeline, stand-in recipients' \
	  'make test    set up and run all tests' \
	  'make check   lint, types, snippets in the papers, generated files' \
	  'make bench   speed as ratios taken in one run (build/bench.json)' \
	  'make setup   prepare .venv only' \
	  'make lock    resolve requirements.lock again (needs uv)' \
	  'make dist    sdist and wheel, each installed and started'

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo 'No python3.11 to python3.14 with venv found. On Debian: apt-get install python3 python3-venv' >&2; exit 1; fi
	@echo "Preparing $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY)
	@$(BIN)/telemetry demo

test: $(READY)
	@$(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadgroup

check: lint types docs generate

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python -m pytest -q tests/docs

generate: $(READY)
	@$(BIN)/python -m telemetry.notice --check

bench: $(READY)
	@$(BIN)/python -m tests.bench

lock:
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock

dist: $(READY)
	@.ci/dist

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
