# One environment for everything: .venv, filled from the lock files. Any target below makes it first.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

UV_VERSION := 0.13.9
CANDIDATES := python3.11 python3.12 python3.13 python3
MODERN := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(MODERN)' 2>/dev/null && echo "$$p" && break; done)

BIN := .venv/bin
STAMP := .venv/.installed
UV := $(BIN)/uv --quiet
# A user without a home, as in many containers, still needs somewhere to put downloads.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR := $(CURDIR)/.venv/.cache
export PIP_NO_CACHE_DIR := 1
endif
# Trust what the machine trusts, a company's own authority included; without any, uv brings its own list.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= 1
endif
# Installed programs must not be told to import from elsewhere.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help
help: ## what can be done here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: $(STAMP) ## start everything with a demo platform and simulated providers
	@exec $(BIN)/hub dev $(ARGS)

.PHONY: test
test: $(STAMP) ## run every test on real, embedded stores
	@exec $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not load' $(ARGS)

.PHONY: setup
setup: $(STAMP) ## create the environment; the other targets do it by themselves

.PHONY: format
format: $(STAMP) ## rewrite the code in the house's layout
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: check
check: $(STAMP) ## lint, types, import contracts, manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hub lint

API_LINT := .ci/api-lint
.PHONY: lint-api
lint-api: $(STAMP) ## lint the API's description with Spectral and Redocly; needs Node
	@cd $(API_LINT) && { cmp -s package-lock.json node_modules/.installed || \
		{ npm ci --silent && cp package-lock.json node_modules/.installed; }; }
	@$(BIN)/hub openapi --out $(API_LINT)/openapi.json
	@cd $(API_LINT) && npm exec --silent --no -- spectral lint --fail-severity=warn openapi.json
	@cd $(API_LINT) && REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true \
		npm exec --silent --no -- redocly lint openapi.json

.PHONY: fuzz
fuzz: $(STAMP) ## send the API made-up requests, as many as FUZZ_EXAMPLES says for each operation and caller
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-50} $(BIN)/python -m pytest -q tests/contract/api/test_fuzz.py $(ARGS)

.PHONY: mutation
mutation: $(STAMP) ## make templates wrong in one place after the other, and tell which of it no sample notices
	@exec $(BIN)/python -m tests.mutation $(ARGS)

.PHONY: snapshots
snapshots: $(STAMP) ## accept what the snapshot tests see now
	@exec $(BIN)/python -m pytest -q tests/snapshot --snapshot-update $(ARGS)

.PHONY: docs
docs: $(STAMP) ## write the reference pages
	@exec $(BIN)/hub docs $(ARGS)

.PHONY: migrate
migrate: $(STAMP) ## bring the database at DATABASE_URL up to date
	@exec $(BIN)/hub migrate $(ARGS)

.PHONY: work
work: $(STAMP) ## run one worker on DATABASE_URL and REDIS_URL
	@exec $(BIN)/hub worker $(ARGS)

.PHONY: bench
bench: $(STAMP) ## measure speed and memory against hand-written equivalents
	@exec $(BIN)/python -m tests.load $(ARGS)

LOCK := pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header $(ARGS)
.PHONY: lock
lock: $(STAMP) ## resolve the dependencies again; ARGS=--upgrade for the newest
	$(UV) $(LOCK) pyproject.toml --extra aws --extra rabbitmq --extra tracing --output-file requirements.lock
	$(UV) $(LOCK) pyproject.toml --extra embedded --extra aws --extra rabbitmq --extra tracing --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	echo hatchling | $(UV) $(LOCK) - --constraint requirements-dev.lock --output-file requirements-build.lock

$(STAMP): requirements-dev.lock pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed, as one of $(CANDIDATES) or as PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c '$(MODERN)' || { echo "make: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) can't create environments; install its venv module (on Debian: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -c '$(MODERN)' 2>/dev/null || { echo "Creating .venv with $(PYTHON)"; "$(PYTHON)" -m venv --clear .venv; }
	@test "$$($(UV) --version 2>/dev/null | cut -d' ' -f2)" = $(UV_VERSION) || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "Installing the locked dependencies"
	@$(UV) pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements-dev.lock
	@$(UV) pip install --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@touch $@
