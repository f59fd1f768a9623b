#!/usr/bin/env bash
# Audit logging of Cloud KMS from a checkout: finds Python, installs what `keypulse-audit` needs into .venv-audit, once,
# and passes everything on: ops/audit/setup-kms-audit-logging.sh plan --project acme-prod
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv-audit
python=${PYTHON:-python3}

if [[ ! $venv/installed -nt $root/requirements/audit.lock ]]; then
  if ! "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "keypulse needs Python 3.11 or newer with venv, and '$python' is none; install it (Debian: apt-get install python3 python3-venv), or name another with PYTHON=" >&2
    exit 2
  fi
  echo "installing into $venv, once; this takes a minute" >&2
  if ! { "$python" -m venv --clear "$venv" &&
    "$venv/bin/python" -m pip install --quiet --require-hashes --only-binary :all: -r "$root/requirements/build.lock" -r "$root/requirements/audit.lock" &&
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index "$root"; }; then
    echo "could not install what is needed; pip needs to reach a package index this once: look at what it says above, then run this again" >&2
    exit 1
  fi
  touch "$venv/installed"
fi
PYTHONPATH=$root exec "$venv/bin/python" -m ops.audit "$@"
