PY := .venv/bin/python
# Most tests wait for services to start: more at once than there are processors.
TEST_WORKERS ?= 4

.PHONY: help run test check bench proto docs lock web

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run:  ## start everything on this machine, with simulated data
	./start-mev-backend.sh

test: .venv/dev  ## run all tests, several files at once (TEST_WORKERS=4)
	$(PY) -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

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
