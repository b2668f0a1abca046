PY := .venv/bin/python
# Most tests wait for services to start: more at once than there are processors.
TEST_WORKERS ?= 4

.PHONY: help run test slow check bench proto docs dashboards monitoring lock web screenshots release

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run:  ## start everything on this machine, with simulated data
	./start-mev-backend.sh

test: .venv/dev  ## run the tests, several files at once (TEST_WORKERS=4)
	$(PY) -m pytest -m "not slow" --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

slow: .venv/dev  ## run the slow tests: kills of whole systems, replicas, floods, and long property tests
	$(PY) -m pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(PY) -m pytest -m hypothesis --hypothesis-profile many --numprocesses 2

check: .venv/dev  ## formatting, linters, types, layer contracts, generated code up to date
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) tools/proto.py --check
	$(PY) tools/settings_reference.py --check
	$(PY) tools/asyncapi.py --check
	$(PY) tools/dashboards.py --check
	$(PY) tools/slo_rules.py --check
	tools/check_native
	$(PY) tools/dependencies.py

bench: .venv/dev  ## measure, as ratios to the raw libraries (ROWS=name,name for some)
	$(PY) -m bench $(ROWS)

proto: .venv/dev  ## generate src/mev/wire/pb from protocol/
	$(PY) tools/proto.py

docs: .venv/dev  ## generate docs/settings.md and docs/asyncapi.json
	$(PY) tools/settings_reference.py
	$(PY) tools/asyncapi.py

dashboards: .venv/dev  ## generate the dashboards and the rules of the objectives in deploy/monitoring
	$(PY) tools/dashboards.py
	$(PY) tools/slo_rules.py

monitoring: .venv/dev  ## run the system with Prometheus, Alertmanager and, where installed, Grafana
	$(PY) tools/run_monitoring.py

web:  ## install, build and test the TypeScript client and the dashboard
	cd web/client && npm ci --no-audit --no-fund && npm run build && npm test
	cd web/dashboard && npm ci --no-audit --no-fund && npm run check && npm test && npm run build

screenshots: .venv/dev  ## take pictures of every page of the dashboard
	PYTHONPATH=. $(PY) tools/screenshots.py

release: .venv/dev  ## build wheel, source archive, client, bill of materials and checksums into dist/
	tools/release

lock: .venv/dev  ## resolve the lock files again from pyproject.toml
	tools/lock

.venv/dev: requirements-dev.lock pyproject.toml native/Cargo.lock $(wildcard native/src/*.rs)
	tools/install requirements-dev.lock
	@touch $@
