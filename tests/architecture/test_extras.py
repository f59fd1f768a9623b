"""Each image installs one extra: what it starts imports nothing else."""

import re
import subprocess
import sys

import pytest

from tests.tracked_files import ROOT

STARTED = {
    "exporter": "services.exporter.app",
    "relay": "services.relay.app",
    "backend": "services.backend.app",
    "rotator": "services.rotator.app",
    "emulator": "ops.kms_emulator.emulator",
    "stand-ins": "ops.demo.stand_ins.app",
}
IMPORT = """
import importlib, importlib.abc, importlib.metadata, re, sys
installed = set(sys.argv[2].split())

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        packages = {re.sub("[-_.]+", "-", each).lower() for each in packages_of.get(name, ())}
        if "." not in name and packages and not packages & installed:
            raise ModuleNotFoundError(f"{name} is of {packages}")
        return None

packages_of = importlib.metadata.packages_distributions()
sys.meta_path.insert(0, Missing())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize(("extra", "module"), STARTED.items())
def test_what_an_image_starts_imports_only_what_it_installs(extra: str, module: str) -> None:
    locked = re.findall(r"^([\w.-]+)==", (ROOT / f"requirements/{extra}.lock").read_text(), re.MULTILINE)
    arguments = [sys.executable, "-c", IMPORT, module, " ".join([*locked, "keypulse"])]
    answer = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
