# The two commands are `make demo` and `make test`; each does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## .venv from the hash-locked requirements

.venv/installed: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "keypulse needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv --clear .venv || { echo "could not make .venv; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/pip install --quiet --require-hashes --only-binary :all: -r requirements/dev.lock || { echo "could not install the locked requirements; pip needs to reach a package index once" >&2; exit 1; }
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $@

demo: install ## everything on one machine; ONCE=1 breaks KMS, waits for page and all-clear, exits
	@ops/tools/require prometheus alertmanager
	@$(BIN)/keypulse-demo $(if $(ONCE),--once)

test: install ## every test that needs no container engine
	@ops/tools/require prometheus alertmanager chromium
	@$(BIN)/pytest -n 4 --dist loadfile

check: install ## ruff, mypy --strict, import-linter, shellcheck, promtool, amtool
	@ops/tools/require prometheus alertmanager
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck ops/tools/require .ci/run
	promtool check rules ops/prometheus/rules/*.yml
	promtool check config --syntax-only ops/prometheus/prometheus.yml
	promtool test rules ops/prometheus/tests/*.yml
	amtool check-config ops/alertmanager/alertmanager.yml

lock: ## writes requirements/*.lock anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements/dev.lock
	for extra in exporter relay backend emulator; do \
	  uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra $$extra -c requirements/dev.lock pyproject.toml -o requirements/$$extra.lock; done

.PHONY: help install demo test check lock
