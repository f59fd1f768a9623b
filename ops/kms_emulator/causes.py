"""The answer of Cloud KMS for a cause of `causes.yml`: status, message, details. Pure."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

from google.protobuf.json_format import Parse
from google.rpc.error_details_pb2 import DebugInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from ops.kms_emulator.model import StatusError
from shared.config.yaml_file import read_yaml

_ROWS: Final[Mapping[str, Mapping[str, Any]]] = read_yaml(Path(__file__).with_suffix(".yml"))
_METADATA: Final = {
    "consumer": {"service": "cloudkms.googleapis.com", "consumer": "projects/$number"},
    "method": {"service": "cloudkms.googleapis.com", "method": "google.cloud.kms.v1.KeyManagementService.$operation"},
}
_NAMES: Final = {
    "console": "https://console.developers.google.com",
    "number": "735941812345",  # of every project
    "uid": "Zk3tVqAxJd0yWq6mC1f8hB7nS2rLpEoT",
}


def _serialize(status: Status, **changes: Any) -> bytes:
    return bytes(Parse(json.dumps(changes), status).SerializeToString())


def _add_detail(status: Status, detail: bytes) -> bytes:
    status.details.add(type_url="type.googleapis.com/google.rpc.DebugInfo", value=detail)
    return _serialize(status)


def _pad(size: int) -> bytes:
    return bytes(DebugInfo(detail="x" * size).SerializeToString())


_MALFORMED: Final[Mapping[str, Callable[[Status], bytes]]] = {
    "malformed_answer": lambda status: _serialize(status) + b"\xff\xff",
    "malformed_answer/other_code": lambda status: _serialize(status, code=StatusCode.UNAUTHENTICATED.value[0]),
    "malformed_answer/other_message": lambda status: _serialize(status, message="Another message than the call's."),
    "malformed_answer/one_unreadable": lambda status: _add_detail(status, b"\xff\xff"),
    "malformed_answer/large": lambda status: _add_detail(status, _pad(20_000)),
    "malformed_answer/too_large": lambda status: _add_detail(status, _pad(1_500_000)),
}
"""The details of `perimeter`, spoilt: `large` is over 16 KiB, gRPC's own limit of metadata, `too_large` over 1 MiB.

A client that sets a limit only loses what is over 1.25 times of it: between both, gRPC throws dice.
"""

CAUSES: Final = (*_ROWS, *_MALFORMED)


def build_refusal(
    cause: str,
    operation: str,
    resource: str,
    message: str | None = None,
    retry_after: float | None = None,
    **names: str,
) -> StatusError:
    """The answer of Cloud KMS to a call, for one of CAUSES; `message` replaces its text, `retry_after` is in seconds.

    `names` is `permission` for a missing role, and those of a quota unless it is the operation's own.
    """
    parts = [*resource.split("/"), "", "", "", ""]
    names = {
        **_NAMES,
        "operation": operation,
        "resource": resource,
        "project": parts[1],
        "location": parts[3],
        "version": resource if "/cryptoKeyVersions/" in resource else f"{resource}/cryptoKeyVersions/1",
        **name_quota(get_quota_kind(operation) or "software", 600),
        **names,
    }
    row = _ROWS["perimeter" if cause in _MALFORMED else cause]
    code = StatusCode.FAILED_PRECONDITION if "ekm" in row else StatusCode[row.get("status", "PERMISSION_DENIED")]
    details = [
        {"@type": f"type.googleapis.com/google.rpc.{type_}", **fields}
        for type_, fields in _list_details(row, retry_after)
    ]
    body = {"code": code.value[0], "message": message or row["text"], "details": details}
    fill = {name: json.dumps(value)[1:-1] for name, value in names.items()}
    status = Parse(Template(json.dumps(body)).safe_substitute(fill), Status())
    text = status.message
    if cause in _MALFORMED:
        return StatusError(code, text, _MALFORMED[cause](status), cause)
    return StatusError(code, text, status.SerializeToString() if details else b"", cause)


def _list_details(row: Mapping[str, Any], retry_after: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if row.get("reason"):
        metadata = {**_METADATA.get(row.get("of", ""), {}), **row.get("metadata", {})}
        domain = row.get("domain", "googleapis.com")
        yield "ErrorInfo", {"reason": row["reason"], "domain": domain, "metadata": metadata}
    if row.get("vpc"):
        violation = {"type": "VPC_SERVICE_CONTROLS", "subject": "cloudkms.googleapis.com", "description": "$uid"}
        yield "PreconditionFailure", {"violations": [violation]}
    if "ekm" in row:
        state = {"type": "KEY_ENABLED", "subject": "$version"}
        error = {"type": row["ekm"], "subject": "$version", "description": row["text"]}
        yield "PreconditionFailure", {"violations": [state, error]}
    if row.get("quota"):
        violation = {"subject": "projects/$number", "description": row["text"]}
        quota = {"quota_metric": "$quota_metric", "quota_id": "$quota_limit", "quota_value": "$quota_value"}
        yield "QuotaFailure", {"violations": [violation | quota]}
    if "help" in row:
        yield "Help", {"links": [{"description": "Google developers console", "url": row["help"]}]}
    if retry_after is not None:
        yield "RetryInfo", {"retryDelay": f"{retry_after:.3f}s"}


def get_quota_kind(operation: str) -> str:
    """The kind of quota that an operation uses where it uses no key material, `read` or `write`; else empty."""
    if operation in {"Encrypt", "Decrypt"}:
        return ""
    return "read" if operation.startswith(("Get", "List", "Test", "Verify")) else "write"


def name_quota(kind: str, value: int) -> dict[str, str]:
    """The names of a quota in a refusal; `kind` is read, write, software, hsm or external, `value` tokens a minute.

    The quotas since February 2026: https://docs.cloud.google.com/kms/quotas
    """
    return {
        "quota_metric": f"cloudkms.googleapis.com/{'external_kms' if kind == 'external' else kind}_usage",
        "quota_limit": f"{kind.capitalize()}TokensUsagePerMinutePerProjectPerRegion",
        "quota_value": str(value),
    }
