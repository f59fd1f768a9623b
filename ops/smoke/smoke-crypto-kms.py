#!/usr/bin/env python3
# ruff: noqa: N999 - a command, and no module
"""The smoke test from a checkout, without an installation: `ops/smoke/smoke-crypto-kms.py --help`.

It needs what `make install` puts into .venv, or the extra `smoke`; without either it says how to get it.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - it may be started by any Python
    sys.exit("keypulse needs Python 3.11 or newer; start this with a newer one")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

try:
    from ops.smoke.__main__ import main
except ModuleNotFoundError as missing:
    elsewhere = f"uvx --from '{ROOT}[smoke]' keypulse-smoke, or pipx run --spec '{ROOT}[smoke]' keypulse-smoke"
    sys.stderr.write(
        f"{missing.name} is not installed; run `make install`, and this with .venv/bin/python, or {elsewhere}\n"
    )
    sys.exit(2)

main(prog_name="smoke-crypto-kms.py")
