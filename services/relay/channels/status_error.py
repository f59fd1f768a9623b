"""Turns an HTTP status that is no success into a SendError."""

from collections.abc import Mapping
from typing import Final

from services.relay.channels.retry_after import parse_retry_after
from services.relay.send_error import SendError, SendReason, SendScope

_TEMPORARY_STATUSES: Final = {
    408: SendReason.TIMEOUT,
    409: SendReason.SERVER_ERROR,  # a conflict, for example with an earlier attempt that is still processed
    423: SendReason.SERVER_ERROR,  # locked: RFC 4918
    425: SendReason.SERVER_ERROR,  # too early: RFC 8470
    429: SendReason.RATE_LIMITED,
}
"""The 4xx statuses that may not occur again at the next attempt."""


def build_status_error(status: int, headers: Mapping[str, str], detail: str, now: float) -> SendError:
    """The error for an HTTP status that is no success (RFC 9110, section 15).

    Args:
        status: of the response.
        headers: of the response, for `Retry-After`.
        detail: one sentence for the log, without secrets.
        now: unix seconds.
    """
    if status in _TEMPORARY_STATUSES:
        return SendError(
            _TEMPORARY_STATUSES[status], SendScope.ATTEMPT, detail, retry_after=parse_retry_after(headers, now)
        )
    if status in {401, 403, 407}:
        return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
    if status in {400, 413, 414, 422, 431}:
        return SendError(SendReason.REJECTED, SendScope.MESSAGE, detail)
    if 300 <= status < 500:  # the URL accepts no messages: it is wrong
        return SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail)
    # An unexpected success, or a 5xx from a proxy, perhaps after it had passed the request on.
    wait = parse_retry_after(headers, now)
    return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, retry_after=wait, maybe_arrived=True)
