"""A failed call of Cloud KMS → KmsError, with the cause that Google sends as details of the status.

The details are read without trust: they are bounded, and whatever they hold is an answer. google.api_core reads them
too, and raises ValueError or DecodeError where they contradict the status; the status is still in the exception behind.
causes.yml has the details that Google sends for a cause.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from shared.kms.gcp.profile import CAUSES
from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason

MAX_METADATA_BYTES: Final = 1 << 20
"""Of an answer. By default gRPC reads 8 KB, and answers RESOURCE_EXHAUSTED itself where there is more."""
_MAX_DETAILS: Final = 50
_MAX_MESSAGE_LENGTH: Final = 2_000
_MAX_VALUE_LENGTH: Final = 300

_BY_STATUS: Final = {
    "DEADLINE_EXCEEDED": Reason.TIMEOUT,
    "PERMISSION_DENIED": Reason.PERMISSION_DENIED,
    "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
    "RESOURCE_EXHAUSTED": Reason.QUOTA_EXHAUSTED,
    "NOT_FOUND": Reason.KEY_NOT_FOUND,
    "INVALID_ARGUMENT": Reason.INVALID_REQUEST,
}

_NO_CREDENTIALS: Final = "Getting metadata from plugin failed"
"""https://github.com/grpc/grpc/blob/master/src/core/credentials/call/plugin/plugin_credentials.cc"""
_HTTP_REFUSAL: Final = "Received http2 header with status: 4"
"""gRPC's text where the answer has an HTTP status only, which it translates: a gateway's 403 is PERMISSION_DENIED.
https://github.com/grpc/grpc/blob/master/src/core/ext/filters/http/client/http_client_filter.cc
"""
_OTHER_LOCATION: Final = "The request concerns location "
"""NOT_FOUND goes on "'X' but was sent to location 'Y'": the key may exist, where the request should have gone.
https://github.com/GoogleCloudPlatform/python-docs-samples/issues/3005
"""

_BY_ERROR_REASON_FORM: Final = (
    (re.compile(r"[A-Z_]+_(POLICY|RESTRICTION)_VIOLATED"), Cause.ORG_POLICY),
    (re.compile(r"API_KEY_[A-Z_]+"), Cause.CREDENTIALS_INVALID),
)


def _list_causes(kind: str) -> dict[str, Cause]:
    return {name: cause for cause, row in CAUSES.items() if isinstance(cause, Cause) for name in row.get(kind, ())}


_BY_ERROR_REASON: Final = _list_causes("reasons")
_BY_VIOLATION: Final = _list_causes("violations")
_BY_LOGIN_TEXT: Final = (
    (re.compile(r"invalid_scope|insufficient_scope", re.IGNORECASE), Cause.SCOPE_MISSING),
    (
        # Not an API or a pool of identities: "IAM Service Account Credentials API … or it is disabled".
        re.compile(
            r"(?:account|Gaia id) not found"
            r"|(?:robot|account|client)(?: \S+)?(?: is| was| has been)? (?:disabled|deleted)",
            re.IGNORECASE,
        ),
        Cause.ACCOUNT_DISABLED,
    ),
    (re.compile(r"invalid_grant|invalid_client|unauthorized_client|invalid_target"), Cause.CREDENTIALS_INVALID),
)
"""What a token server answers (RFC 6749, section 5.2); Google's says more after it, such as "account not found"."""

_PERMISSION: Final = re.compile(r"Permission '([a-zA-Z.]{1,100})' denied")
_PERIMETER_ID: Final = re.compile(r"vpcServiceControlsUniqueIdentifier: ([\w-]{1,200})")
_NAMED: Final = {
    "permission": "permission",
    "uid": "troubleshooter_id",
    "activationUrl": "activation_url",
    "policyName": "constraint",
    "policy_name": "constraint",
    "constraint": "constraint",
    "quota_metric": "quota_metric",
    "quota_limit": "quota_limit",
    "quota_location": "quota_location",
    "quota_limit_value": "quota_limit_value",
    "consumer": "consumer",
}
"""Metadata of an ErrorInfo that is shown, and the name of its value."""


@dataclass(slots=True)
class _Details:
    """What could be read."""

    count: int = 0
    """Of all, those of an unknown kind included."""
    reasons: list[str] = field(default_factory=list)
    """Of each ErrorInfo of Google's."""
    violations: list[str] = field(default_factory=list)
    """The types of violated preconditions."""
    has_quota: bool = False
    retry_after: float | None = None
    """Seconds."""
    values: dict[str, str] = field(default_factory=dict)


def parse_error(error: BaseException) -> KmsError | None:
    """The failure behind an exception of the client; None where it is none of a call."""
    rpc: BaseException | None = error
    while rpc is not None and not isinstance(rpc, grpc.aio.AioRpcError):
        rpc = rpc.__cause__ or rpc.__context__
    if rpc is None:
        return None
    blobs = [value for key, value in rpc.trailing_metadata() or () if key == "grpc-status-details-bin"]
    return parse_status(rpc.code().name, rpc.details() or "", blobs[0] if blobs else None)  # type: ignore[arg-type]


def parse_auth_error(error: GoogleAuthError) -> KmsError:
    """The failure where Google's credentials could not be had."""
    text = f"Google credentials: {error}"[:_MAX_MESSAGE_LENGTH]
    # Files that are missing, or are none, have an exception of their own.
    other = Cause.CREDENTIALS_INVALID if isinstance(error, DefaultCredentialsError) else Cause.NONE
    return KmsError(Reason.UNAUTHENTICATED, text, _find_login_cause(text) or other)


def parse_status(status: str, message: str, blob: bytes | None = None) -> KmsError:
    """The failure of a call.

    Args:
        status: of gRPC, such as `PERMISSION_DENIED`.
        message: its text.
        blob: the metadata `grpc-status-details-bin`; None where there is none.
    """
    message = message[:_MAX_MESSAGE_LENGTH]
    if status == "UNAVAILABLE" and message.startswith(_NO_CREDENTIALS):
        return KmsError(Reason.UNAUTHENTICATED, message, _find_login_cause(message))
    if message.startswith(_HTTP_REFUSAL):
        return KmsError(Reason.UNAVAILABLE, f"{message} (a gateway says it, not KMS)", Cause.MALFORMED_ANSWER)
    details = _read_details(status, blob)
    if details is None or (status == "RESOURCE_EXHAUSTED" and "metadata size exceeds" in message):
        detail = f"{status}: {message} (its details cannot be read)"
        return KmsError(Reason.UNAVAILABLE, detail, Cause.MALFORMED_ANSWER)
    values = details.values
    for name, pattern in (("permission", _PERMISSION), ("troubleshooter_id", _PERIMETER_ID)):
        if name not in values and (found := pattern.search(message)):
            values[name] = found[1]
    cause = _find_cause(details)
    is_silent = status == "PERMISSION_DENIED" and not (details.reasons or details.violations)
    if is_silent and "troubleshooter_id" in values:
        is_silent, cause = False, Cause.PERIMETER
    elif is_silent and not details.count:
        cause = Cause.ROLE_MISSING
    reason = cause.reason if cause else _find_reason(status, message, details.violations)
    shown = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in values.items() if value not in message)
    detail = f"{message or status}{f' ({shown})' if shown else ''}"
    return KmsError(reason, detail, cause, values, details.retry_after, is_silent=is_silent)


def _read_details(status: str, blob: bytes | None) -> _Details | None:
    """None where they cannot be read, or are those of another status."""
    details = _Details()
    if not blob:
        return details
    try:
        sent = Status.FromString(blob)
    except DecodeError:
        return None
    if sent.code != grpc.StatusCode[status].value[0]:
        return None
    unreadable, details.count = 0, len(sent.details)
    for each in sent.details[:_MAX_DETAILS]:
        try:
            _read_detail(each, details)
        except DecodeError:
            unreadable += 1
    return None if unreadable and unreadable == details.count else details


def _read_detail(sent: Any, details: _Details) -> None:
    if sent.Is(ErrorInfo.DESCRIPTOR):
        info = ErrorInfo.FromString(sent.value)
        if info.domain.partition("/")[0].endswith("googleapis.com"):
            details.reasons.append(info.reason)
            _add_values(details, info.metadata)
    elif sent.Is(PreconditionFailure.DESCRIPTOR):
        for violation in PreconditionFailure.FromString(sent.value).violations[:_MAX_DETAILS]:
            details.violations.append(violation.type)
            if violation.type == "VPC_SERVICE_CONTROLS":
                _add_values(details, {"uid": violation.description})
    elif sent.Is(QuotaFailure.DESCRIPTOR):
        details.has_quota = True
        for quota in QuotaFailure.FromString(sent.value).violations[:1]:
            _add_values(details, {"quota_metric": quota.quota_metric, "consumer": quota.subject})
    elif sent.Is(RetryInfo.DESCRIPTOR):
        delay = RetryInfo.FromString(sent.value).retry_delay
        details.retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)


def _add_values(details: _Details, metadata: Mapping[str, str]) -> None:
    for name, value in metadata.items():
        # Google's are such texts; in JSON any other character takes six.
        if name in _NAMED and value and value.isascii() and value.isprintable():
            details.values.setdefault(_NAMED[name], value[:_MAX_VALUE_LENGTH])


def _find_cause(details: _Details) -> Cause:
    """The most particular one: a role that is missing as well is found out when the rest is repaired."""
    found = [_BY_VIOLATION[each] for each in details.violations if each in _BY_VIOLATION]
    found += [_parse_error_reason(each) for each in details.reasons]
    found += [Cause.RATE_LIMIT] if details.has_quota else []
    return next(
        (each for each in found if each and each is not Cause.ROLE_MISSING), next(filter(None, found), Cause.NONE)
    )


def _parse_error_reason(reason: str) -> Cause:
    forms = (cause for form, cause in _BY_ERROR_REASON_FORM if form.fullmatch(reason))
    return _BY_ERROR_REASON.get(reason) or next(forms, Cause.NONE)


def _find_login_cause(text: str) -> Cause:
    return next((cause for pattern, cause in _BY_LOGIN_TEXT if pattern.search(text)), Cause.NONE)


def _find_reason(status: str, message: str, violations: Sequence[str]) -> Reason:
    """Without a cause.

    Cloud KMS names a version's state in the text ("… is not enabled, current state is: DESTROYED.") and as the type of
    a violation. A precondition that names no state says nothing of the version. What never reached the key says nothing
    of it, either: another location, or an endpoint that does not know the method.
    """
    if message.startswith(_OTHER_LOCATION):
        return Reason.UNAVAILABLE
    if status != "FAILED_PRECONDITION":
        return _BY_STATUS.get(status, Reason.UNAVAILABLE)
    # A name comes before the state, which may contain any text.
    _, found, state = message.rpartition("current state is:")
    # The first violation of an external key is its state, also where only the key manager fails.
    states = [state] if found else [each for each in violations if each.startswith("KEY_") and each != "KEY_ENABLED"]
    if not states:
        return Reason.UNAVAILABLE
    return Reason.KEY_DESTROYED if "DESTROY" in states[0] else Reason.KEY_DISABLED
