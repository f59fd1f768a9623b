"""The start of each installed command: it says which extra is missing, where its packages are not installed."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

_MODULES: Final = {
    "keypulse-exporter": "services.exporter",
    "keypulse-relay": "services.relay",
    "keypulse-backend": "services.backend",
    "keypulse-rotator": "services.rotator",
    "keypulse-emulator": "ops.kms_emulator",
    "keypulse-audit": "ops.audit",
    "keypulse-smoke": "ops.smoke",
    "keypulse-demo": "ops.demo",
}


def main() -> None:
    """Run the command by whose name it was started. Exits with 1 where its extra is not installed."""
    command = Path(sys.argv[0]).stem
    try:
        module = import_module(f"{_MODULES[command]}.__main__")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "services", "shared", "ops"}:
            raise
        extra = command.removeprefix("keypulse-")
        sys.exit(
            f"{command}: the package {package} is not installed; install the extra `{extra}`, "
            f"in the checkout: pip install '.[{extra}]'"
        )
    module.main()
