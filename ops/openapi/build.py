"""Writes the shapes into docs/admin-api.openapi.yaml: `python -m ops.openapi.build`.

The document is the admin API that a service offers to be rotated, as OpenAPI 3.1. Its paths are written in it; its
shapes are those of the code that rotator and reference backend share.
"""

from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.backend.admin_api import (
    DryRunRequest,
    JournalRequest,
    LeaseRequest,
    PageRequest,
    ReleaseRequest,
    RequestBody,
    RestoreRequest,
    RetireRequest,
    RollbackRequest,
    VerifyRequest,
)
from shared import VERSION
from shared.keyring.administration import (
    KeyInfo,
    KeyUsage,
    Lease,
    RotateRequest,
    RotationProgress,
    StoredKey,
    VerificationResult,
)

FILE: Final = Path(__file__).parents[2] / "docs/admin-api.openapi.yaml"
_HEAD: Final = (
    "# Paths are written here; `python -m ops.openapi.build` writes the schemas, but those without a class.\n"
)
_MODELS: Final[tuple[type[BaseModel], ...]] = (
    *(LeaseRequest, ReleaseRequest, PageRequest, DryRunRequest, RotateRequest, JournalRequest, RollbackRequest),
    *(RestoreRequest, VerifyRequest, RetireRequest, RequestBody),
    *(KeyInfo, KeyUsage, RotationProgress, Lease, StoredKey, VerificationResult),
)
_WITHOUT_CLASS: Final = ("DryRun", "Error", "Restored", "Rotate")


class _Dumper(yaml.SafeDumper):
    """Writes each part where it stands, and a text of several lines as it is."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def build_text() -> str:
    """What the file has to hold."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    modes = [(model, "validation") for model in _MODELS]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]  # a Literal
    written = document["components"]["schemas"]
    schemas: dict[str, Any] = {**definitions["$defs"], **{name: written[name] for name in _WITHOUT_CLASS}}
    schemas["RotateRequest"]["not"] = {"required": ["dry_run"], "properties": {"dry_run": {"const": True}}}
    document["info"]["version"] = VERSION
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return _HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    FILE.write_text(build_text(), encoding="utf-8")
