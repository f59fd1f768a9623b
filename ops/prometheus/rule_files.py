"""Reads the product's alerting and recording rules."""

from pathlib import Path
from typing import Any, Final

import yaml

_FOLDER: Final = Path(__file__).parent / "rules"


def read_rules() -> dict[str, list[dict[str, Any]]]:
    """Return the rules of each file, by its name."""
    return {
        file.name: [
            rule for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
        ]
        for file in sorted(_FOLDER.glob("*.yml"))
    }
