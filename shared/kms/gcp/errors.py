"""From a gRPC status of Cloud KMS to a reason. Pure."""

from typing import Final

from shared.kms.reason import Reason

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
        # A name comes before it, which may contain any text.
        _, found, state = message.rpartition("current state is:")
        if not found:
            return Reason.UNAVAILABLE
        return Reason.KEY_DESTROYED if "DESTROY" in state else Reason.KEY_DISABLED
    return _BY_STATUS.get(status, Reason.UNAVAILABLE)
