# make run | test | check | bench. Each prepares .venv first and does nothing there when the lock is unchanged.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# PYTHON=… and WORKERS=… may be given; SHORT=1 makes `bench` a quick gate.
PYTHON ?=
WORKERS ?= 2
SHORT ?=
MINUTES ?= 30
SEED ?=
ROUND ?=

.PHONY: help setup run test proof check bench score fuzz soak lint types docs generate lock dist clean

help:
	@printf '%s\n' \
	  'make run     set up and show the demo: real clients, real pipeline, stand-in recipients' \
	  'make test    set up and run all tests' \
	  'make check   lint, types, snippets in the papers, generated files' \
	  'make bench   speed as ratios taken in one run (build/bench.json); SHORT=1: a quick gate' \
	  'make score   recall and over-scrubbing of the detectors on our own corpus, against its bars' \
	  'make proof   5,000 changes to the tables, each of which some check must notice; hostile inputs; a long outage; a join' \
	  'make fuzz    inputs made to break promises; SECONDS=600 for each target, TARGETS="text url"' \
	  'make soak    kill -9 and every other fault at random; MINUTES=30 SEED=n; SHORT=1: 200 kills' \
	  'make setup   prepare .venv only' \
	  'make lock    resolve requirements.lock again (needs uv)' \
	  'make dist    sdist and wheel, installed and started outside the checkout'

setup: $(READY)

# A changed lock makes the environment anew; a pyproject.toml that only looks newer costs seconds.
# pip reads its own settings (index, proxy, certificates) as everywhere on this machine.
$(READY): requirements.lock pyproject.toml
	@python=''; \
	for candidate in $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'No Python 3.11 to 3.14 that can make virtual environments was found.' >&2; \
	  echo 'On Debian: apt-get install python3 python3-venv. Elsewhere: make setup PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	lock="$$($$python -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())')"; \
	if [ "$$(cat $(READY) 2>/dev/null || true)" != "$$lock" ]; then \
	  echo "Preparing $(VENV) with $$($$python --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	echo "$$lock" > $@

run: $(READY)
	@$(BIN)/telemetry demo

test: $(READY)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations 15 -m 'not endurance' --ignore tests/docs --ignore tests/mutation --ignore tests/integration/test_hostile.py

# What takes minutes and proves that the tests themselves can be believed.
proof: $(READY)
	@$(BIN)/python -m pytest -q -n $(WORKERS) tests/mutation tests/integration/test_hostile.py
	@$(BIN)/python -m pytest -q -n $(WORKERS) -m endurance tests
	@TELEMETRY_JOIN_ACCOUNTS=100000 $(BIN)/python -m pytest -q tests/integration/test_separation.py

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
	@$(BIN)/python -m tests.bench $(if $(SHORT),--short)

score: $(READY)
	@$(BIN)/python -m tests.score

# The shell knows a SECONDS of its own: only one that was given to make counts.
fuzz: $(READY)
	@$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60) --jobs $(WORKERS)

soak: $(READY)
	@$(BIN)/python -m tests.soak --json build/soak.json $(if $(SHORT),--minutes 2 --kills 200 --calm-s 40 --stall-s 40 --recovery-s 20,--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

lock:
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock

dist: $(READY)
	@.ci/dist

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
