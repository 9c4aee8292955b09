# Placet. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/$(VENV)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

MEMBERS := services/core services/verify services/sandbox services/gateway services/operator services/aggregator services/settlement services/inference sdk
EDITABLE := $(foreach member,$(MEMBERS),-e ./$(member))
SOURCES := $(foreach member,$(MEMBERS),$(member)/src)

.PHONY: help doctor demo test test-rust lint format unit forge gas e2e bench contracts engine policies proto lock up clean install install-ai install-dev

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

doctor: ## run every tool that is needed, name what is missing
	@$(PYTHON) tools/doctor.py test

# --- installing: uv inside the virtual environment, everything else locked with hashes

$(BIN)/uv:
	@echo "installing uv into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BIN)/uv requirements/demo.txt $(foreach member,$(MEMBERS),$(member)/pyproject.toml)
	@echo "installing Python packages, some 250 MB, into $(VENV)"
	@$(BIN)/uv pip install --quiet --require-hashes -r requirements/demo.txt
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation $(EDITABLE)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt
	@echo "installing the tests' Python packages"
	@$(BIN)/uv pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

contracts/node_modules/.installed: contracts/package-lock.json
	@echo "installing the contracts' npm packages"
	@cd contracts && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

install: $(VENV)/.demo ## what the demo needs
	@$(BIN)/python -m placet.sdk.devservices.anvil

install-ai: $(VENV)/.demo requirements/demo-ai.txt ## what running models needs, on top of install
	@echo "installing what running models needs"
	@$(BIN)/uv pip install --quiet --require-hashes -r requirements/demo-ai.txt
	@$(BIN)/python -m placet.sdk.devservices.anvil

install-dev: $(VENV)/.dev contracts/node_modules/.installed ## what the tests need
	@$(BIN)/python -m placet.sdk.devservices.anvil

# --- running

demo: ## from a clean clone: install, bring the network up, tell the story
	@$(PYTHON) tools/doctor.py demo
	@$(MAKE) --no-print-directory install
	@$(BIN)/placet demo

up: install ## the whole network on this machine, until Ctrl-C
	@$(BIN)/placet up

# --- testing

test: ## lint, then every test
	@$(PYTHON) tools/doctor.py test
	@$(MAKE) --no-print-directory install-dev
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory forge
	@$(MAKE) --no-print-directory gas
	@$(BIN)/pytest -q

test-rust: install-dev ## build a component in Rust and try it; needs rustup and Debian 12
	@$(BIN)/pytest -q tests/rust

lint: $(VENV)/.dev contracts/node_modules/.installed ## ruff, mypy, import-linter, buf, forge fmt, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES) tests tools bench
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/baseline.binpb
	$(BIN)/python tools/gen_proto.py --check
	$(BIN)/python tools/generated.py --check
	cd contracts && npm run --silent fmt-check

format: $(VENV)/.dev contracts/node_modules/.installed ## format Python and Solidity
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd contracts && npm run --silent fmt

unit: $(VENV)/.dev ## the fast tests
	$(BIN)/pytest -q tests/unit

forge: contracts/node_modules/.installed ## contract tests
	cd contracts && npm run --silent test

gas: contracts/node_modules/.installed ## gas ceilings, from receipts
	cd contracts && npm run --silent gas

e2e: install-dev ## the story over real Kafka and PostgreSQL
	$(BIN)/pytest -q tests/e2e

bench: install ## what an intent costs against the floor it cannot go below
	$(BIN)/python bench/authorization.py
	$(BIN)/python -m bench.storage

policies: install-dev ## build the packs' components and compare them with those checked in (ACCEPT=1 replaces them)
	$(BIN)/python -m placet.sdk.policybuild

# --- generated and built things

contracts: contracts/node_modules/.installed ## compile, write ABI and bytecode
	cd contracts && npm run --silent build
	$(BIN)/python tools/generated.py

engine: ## rebuild engine.wasm, say whether the bytes are the same
	services/sandbox/engine/build.sh

proto: $(VENV)/.dev ## generate the protobuf code
	$(BIN)/python tools/gen_proto.py

lock: $(BIN)/uv ## lock every distribution's dependencies
	$(BIN)/python tools/lock.py

clean: ## remove what was built and installed
	rm -rf $(VENV) .run build contracts/node_modules contracts/out contracts/cache
