"""Why a KMS call failed: a closed set, and the table from a gRPC status to it. Pure."""

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """The label `reason` of `kms_probe_failures_total`."""

    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    PERMISSION_DENIED = "permission_denied"
    UNAUTHENTICATED = "unauthenticated"
    QUOTA_EXHAUSTED = "quota_exhausted"
    KEY_NOT_FOUND = "key_not_found"
    KEY_DISABLED = "key_disabled"
    KEY_DESTROYED = "key_destroyed"
    CRC_MISMATCH = "crc_mismatch"
    PLAINTEXT_MISMATCH = "plaintext_mismatch"
    INVALID_REQUEST = "invalid_request"
    INTERNAL = "internal"
    """A defect of keypulse itself; a fault inside the service counts as `unavailable`."""


_BY_STATUS: Final = {
    "DEADLINE_EXCEEDED": Reason.TIMEOUT,
    "PERMISSION_DENIED": Reason.PERMISSION_DENIED,
    "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
    "RESOURCE_EXHAUSTED": Reason.QUOTA_EXHAUSTED,
    "NOT_FOUND": Reason.KEY_NOT_FOUND,
    "INVALID_ARGUMENT": Reason.INVALID_REQUEST,
    "OUT_OF_RANGE": Reason.INVALID_REQUEST,
    "UNIMPLEMENTED": Reason.INVALID_REQUEST,
}

_NO_CREDENTIALS: Final = "Getting metadata from plugin failed"
"""https://github.com/grpc/grpc/blob/master/src/core/credentials/call/plugin/plugin_credentials.cc"""


def parse_grpc_status(status: str, message: str) -> Reason:
    """Reason of a gRPC status.

    Args:
        status: the status code's name, such as `PERMISSION_DENIED`.
        message: the service's text; Cloud KMS names a version's state only there ("… is not enabled, current state
            is: DESTROYED."), and gRPC itself says only there that it got no token for the call. A precondition that
            names no state, such as an external key manager's, says nothing of the version.
    """
    if status == "UNAVAILABLE" and message.startswith(_NO_CREDENTIALS):
        return Reason.UNAUTHENTICATED
    if status == "FAILED_PRECONDITION":
        _, told, state = message.rpartition("current state is:")  # before it stands a name, which may hold any word
        if not told:
            return Reason.UNAVAILABLE
        return Reason.KEY_DESTROYED if "DESTROY" in state else Reason.KEY_DISABLED
    return _BY_STATUS.get(status, Reason.UNAVAILABLE)
