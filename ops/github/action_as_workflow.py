"""`python -m ops.github.action_as_workflow`: action.yml as a workflow with the same steps, for actionlint.

actionlint reads workflows only, and would overlook a misspelt input or a step that does not exist.
"""

import sys
from pathlib import Path
from typing import Any, Final

import yaml

ACTION: Final = Path(__file__).parents[2] / "action.yml"


def build_workflow() -> dict[str, Any]:
    """A workflow that is called with the action's inputs, and runs its steps."""
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    inputs = {name: {"type": "string"} for name in action["inputs"]}
    job = {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"]}
    return {"name": action["name"], "on": {"workflow_call": {"inputs": inputs}}, "jobs": {"action": job}}


if __name__ == "__main__":
    yaml.safe_dump(build_workflow(), sys.stdout, sort_keys=False)
