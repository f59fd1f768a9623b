#!/usr/bin/env python3
# ruff: noqa: N999 - a command, and no module
"""The smoke test from a checkout, without an installation: `ops/smoke/smoke-crypto-kms.py --help`.

It needs what `make install` puts into .venv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

try:
    from ops.smoke.__main__ import main
except ModuleNotFoundError as missing:
    sys.stderr.write(f"{missing.name} is not installed; run `make install`, and this with .venv/bin/python\n")
    sys.exit(2)

main(prog_name="smoke-crypto-kms.py")
