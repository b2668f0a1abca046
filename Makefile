PY := .venv/bin/python

.PHONY: help run test test-integration test-others check bench proto docs lock web

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run:  ## start everything on this machine, with simulated data
	./start-mev-backend.sh

test: test-integration test-others  ## run all tests; with -j2 -O, in half the time

test-integration: .venv/dev
	$(PY) -m pytest tests/integration

test-others: .venv/dev
	$(PY) -m pytest tests/unit tests/e2e

check: .venv/dev  ## formatting, linters, types, layer contracts, generated code up to date
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) tools/proto.py --check
	$(PY) tools/settings_reference.py --check

bench: .venv/dev  ## measure, as ratios to the raw libraries (ROWS=name,name for some)
	$(PY) -m bench $(ROWS)

proto: .venv/dev  ## generate src/mev/wire/pb from protocol/
	$(PY) tools/proto.py

docs: .venv/dev  ## generate docs/settings.md
	$(PY) tools/settings_reference.py

web:  ## install, build and test the TypeScript client
	cd web/client && npm ci --no-audit --no-fund && npm run build && npm test

lock: .venv/dev  ## resolve the lock files again from pyproject.toml
	tools/lock

.venv/dev: requirements-dev.lock pyproject.toml setup.py src/mev/predict/engine.c
	tools/install requirements-dev.lock
	@touch $@
