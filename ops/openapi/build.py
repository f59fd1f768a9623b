"""Writes docs/admin-api.openapi.yaml: `python -m ops.openapi.build`."""

from pathlib import Path
from typing import Final

import yaml

from ops.openapi.document import build_document

FILE: Final = Path(__file__).parents[2] / "docs/admin-api.openapi.yaml"
_HEAD: Final = "# Built by `python -m ops.openapi.build` from ops/openapi and shared/keyring/administration.py.\n"


class _Dumper(yaml.SafeDumper):
    """Writes each part where it stands, and a text of several lines as it is."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def build_text() -> str:
    """What the file has to hold."""
    return _HEAD + yaml.dump(build_document(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    FILE.write_text(build_text(), encoding="utf-8")
