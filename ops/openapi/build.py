"""Writes docs/admin-api.openapi.yaml: `python -m ops.openapi.build`.

It is the admin API that a service offers to be rotated, as OpenAPI 3.1: the paths are here, the shapes in the code.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

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

_REFERENCE: Final = "#/components/schemas/{model}"
_DESCRIPTION: Final = """\
What a service offers so that keypulse-rotator rotates its data keys: the driver `admin_api` calls it. The reference
implementation is keypulse-backend; `keypulse-rotator conformance --config FILE` checks yours.

Fields are added, never removed: pass over those that you do not know. A change needs the token of the lease, and names
what it expects to find, so every call may be repeated after an answer that was lost. A `fingerprint` is
HMAC-SHA256 of the data key with the message `keypulse data key fingerprint`: the data key is the key of the HMAC.
"""


class Operation(NamedTuple):
    method: str
    path: str
    summary: str
    request: str | None
    """The name of its body's schema."""
    response: str | list[str] | None
    """The name of its answer's schema, or of a list's items; None where there is no answer, 204."""
    is_change: bool = False
    """Whether it needs the lease's token."""


def _refer(name: str) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=name)}


def _contain(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


OPERATIONS: Final = (
    Operation(
        "get", "keys", "Data keys without their wrapped form, a page in the order of their ids", None, ["KeyInfo"]
    ),
    Operation("get", "census", "Which data keys and records need which version of the KMS key", None, "KeyUsage"),
    Operation(
        "get", "rotations/{rotation_id}", "How far a rotation is; `latest` is the latest", None, "RotationProgress"
    ),
    Operation("post", "lease", "Takes the lease, or keeps it where `token` is its own", "LeaseRequest", "Lease"),
    Operation("post", "release", "Gives the lease up; another's stays", "ReleaseRequest", None),
    Operation(
        "post",
        "backup",
        "Data keys with their wrapped form, a page in the order of their ids",
        "PageRequest",
        ["StoredKey"],
    ),
    Operation(
        "post",
        "rotate",
        "Begins a rotation or does its next batch; `dry_run`: only says what it would do",
        "Rotate",
        "RotationProgress",
        is_change=True,
    ),
    Operation("post", "journal", "Stores a step of the runner", "JournalRequest", None, is_change=True),
    Operation(
        "post",
        "rollback",
        "Undoes the next batch by the journal",
        "RollbackRequest",
        "RotationProgress",
        is_change=True,
    ),
    Operation(
        "post",
        "restore",
        "Puts back rows of a backup whose data key, of the same id and fingerprint, does not open",
        "RestoreRequest",
        "Restored",
        is_change=True,
    ),
    Operation(
        "post",
        "verify",
        "Unwraps every data key and opens records; with `after` a page of them",
        "VerifyRequest",
        "VerificationResult",
    ),
    Operation(
        "post", "retire", "From now on nothing may be wrapped by this version", "RetireRequest", None, is_change=True
    ),
    Operation("post", "reload", "Reads the keyring again", "RequestBody", None),
)
"""All that the rotator calls."""

_MODELS: Final[tuple[type[BaseModel], ...]] = (
    *(LeaseRequest, ReleaseRequest, PageRequest, DryRunRequest, RotateRequest, JournalRequest, RollbackRequest),
    *(RestoreRequest, VerifyRequest, RetireRequest, RequestBody),
    *(KeyInfo, KeyUsage, RotationProgress, Lease, StoredKey, VerificationResult),
)
_ERRORS: Final = {
    "400": "the request is not as described here",
    "401": "no token, or a wrong one",
    "403": "the token may not do this",
    "409": "it must not be done now: the lease is another's, say",
    "424": "what is behind the service refuses and goes on refusing, such as KMS",
    "503": "it may be tried again; what was asked may have been done",
}
_PAGE_PARAMETERS: Final = (
    {"name": "after", "in": "query", "schema": {"type": "string", "default": ""}, "description": "an id"},
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000}},
)


def build_document() -> dict[str, Any]:
    modes = [(model, "validation") for model in _MODELS]
    _, definitions = models_json_schema(modes, ref_template=_REFERENCE)  # type: ignore[arg-type]  # a Literal
    schemas: dict[str, Any] = definitions["$defs"] | {
        "Rotate": {"oneOf": [_refer("RotateRequest"), _refer("DryRun")]},
        "DryRun": {
            "allOf": [_refer("DryRunRequest")],
            "type": "object",
            "required": ["dry_run"],
            "properties": {"dry_run": {"const": True}},
        },
        "Restored": {"type": "object", "required": ["changed"], "properties": {"changed": {"type": "integer"}}},
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {"type": "string", "description": "one sentence for a person, without a secret"},
                "hint": {"type": "string", "description": "what to do about it; absent where `error` says it"},
            },
        },
    }
    schemas["RotateRequest"]["not"] = {"required": ["dry_run"], "properties": {"dry_run": {"const": True}}}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(f"/admin/crypto/{operation.path}", {})[operation.method] = _build_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "keypulse admin API", "version": VERSION, "description": _DESCRIPTION},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(schemas.items())),
        },
    }


def _build_operation(operation: Operation) -> dict[str, Any]:
    summary = f"{operation.summary}. Needs the token of the lease" if operation.is_change else operation.summary
    name = operation.path.partition("/")[0]
    built: dict[str, Any] = {
        "operationId": name if operation.method == "post" else f"get_{name}",
        "summary": summary,
    }
    if operation.path == "keys":
        built["parameters"] = list(_PAGE_PARAMETERS)
    elif "{" in operation.path:
        built["parameters"] = [{"name": "rotation_id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.request:
        built["requestBody"] = {"required": True, **_contain(_refer(operation.request))}
    errors = dict(_ERRORS)
    if "{" in operation.path:
        errors["404"] = "there is no such rotation, or none yet"
    match operation.response:
        case None:
            built["responses"] = {"204": {"description": "done"}}
        case [item]:
            built["responses"] = {"200": {"description": "done", **_contain({"type": "array", "items": _refer(item)})}}
        case str(name):
            built["responses"] = {"200": {"description": "done", **_contain(_refer(name))}}
    built["responses"] |= {
        code: {"description": text, **_contain(_refer("Error"))} for code, text in sorted(errors.items())
    }
    return built


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
