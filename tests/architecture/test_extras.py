"""Each image installs one extra: what it starts imports nothing else."""

import json
import re
import subprocess
import sys

from tests.tracked_files import ROOT

STARTED = {
    "exporter": "services.exporter.app",
    "relay": "services.relay.app",
    "backend": "services.backend.app",
    "rotator": "services.rotator.app",
    "emulator": "ops.kms_emulator.emulator",
    "stand-ins": "ops.demo.stand_ins.app",
}
IMPORTS = """
import importlib, importlib.abc, importlib.metadata, json, os, re, sys, traceback
packages_of = importlib.metadata.packages_distributions()

class Missing(importlib.abc.MetaPathFinder):
    def __init__(self, installed):
        self.installed = set(installed)

    def find_spec(self, name, path=None, target=None):
        packages = {re.sub("[-_.]+", "-", each).lower() for each in packages_of.get(name, ())}
        if "." not in name and packages and not packages & self.installed:
            raise ModuleNotFoundError(f"{name} is of {packages}")
        return None

children = {}
for module, installed in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        sys.meta_path.insert(0, Missing(installed))
        try:
            importlib.import_module(module)
        except BaseException:
            print(module, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    children[child] = module
failed = [module for child, module in children.items() if os.waitpid(child, 0)[1]]
sys.exit(f"failed: {failed}" if failed else 0)
"""


def test_what_an_image_starts_imports_only_what_it_installs() -> None:
    """Each module in a process of its own, forked from one that imported nothing: all of them at once."""
    installed = {
        module: [
            *re.findall(r"^([\w.-]+)==", (ROOT / f"requirements/{extra}.lock").read_text(), re.MULTILINE),
            "keypulse",
        ]
        for extra, module in STARTED.items()
    }
    command = [sys.executable, "-c", IMPORTS, json.dumps(installed)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
