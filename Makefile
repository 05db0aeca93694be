# Every target does all of its own set-up. Root is needed: the tests and the demo make network namespaces.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODES ?= 200
# Processes that run tests at the same time. Most tests wait more than they compute.
JOBS ?= 6

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# Installs the packages of list $(1) that are missing.
define install
missing=$$(grep -vE '^(#|$$)' $(1) | while read -r p _; do \
  dpkg-query -W -f '$${db:Status-Abbrev}' "$$p" 2>/dev/null | grep -q '^ii' || echo "$$p"; done); \
if [ -n "$$missing" ]; then echo "installing:" $$missing; \
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing; fi
endef

.PHONY: packages
packages: ## install the Debian packages that are missing (debian-packages.txt)
	@$(call install,debian-packages.txt)

.PHONY: packages-vm
packages-vm: ## the same for the virtual machine (debian-packages-vm.txt)
	@$(call install,debian-packages-vm.txt)

$(VENV)/.ready: requirements.lock pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: packages $(VENV)/.ready ## make .venv with everything that is pinned in requirements.lock

.PHONY: demo
demo: setup ## run four hosts on this machine, and serve the pages of one on 127.0.0.1:1107
	$(BIN)/python -m tests.lab.demo

.PHONY: check
check: setup ## format, lint, types, import rules, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

.PHONY: test
test: check packages-vm ## everything in check, and the tests of every area
	$(BIN)/pytest -n $(JOBS) -m "not long"

.PHONY: test-all
test-all: check packages-vm ## everything in check, and every test, also the long ones: chaos, floods, all of tests/vm
	$(BIN)/pytest -n $(JOBS)

.PHONY: unit
unit: setup ## the tests that start no process
	$(BIN)/pytest -n $(JOBS) tests/unit

.PHONY: test-vm
test-vm: setup packages-vm ## the tests on Debian's kernel, which has WireGuard and IPIP, in a virtual machine
	$(BIN)/pytest -v tests/vm

.PHONY: bench
bench: setup ## one agent among NODES=200 simulated nodes, as JSON; then the tests of what must happen soon, alone
	$(BIN)/python -m tests.lab.bench --nodes $(NODES)
	KILO_STRICT_BOUNDS=1 $(BIN)/pytest -m timing

.PHONY: lock
lock: setup ## pin the newest versions in requirements.lock, and those of the image in deploy/*.lock
	$(BIN)/uv pip compile -q pyproject.toml --group dev --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-header --no-annotate --upgrade -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml -c requirements.lock --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-header --no-annotate -o deploy/requirements.lock
	$(BIN)/uv pip compile -q --group pyproject.toml:build -c requirements.lock --generate-hashes --universal \
	  --python-version 3.11 --no-emit-index-url --no-header --no-annotate -o deploy/build.lock

.PHONY: manifests
manifests: ## render deploy/kustomize into deploy/manifests; needs kubectl
	deploy/render

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
