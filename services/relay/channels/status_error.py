"""What an HTTP status that is no success means for a delivery, and how long `Retry-After` asks to wait."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from services.relay.send_error import Reason, Scope, SendError

MAX_RETRY_AFTER: Final = 1_000_000.0
"""Seconds; a longer `Retry-After` is ignored as an error."""
_TEMPORARY_STATUSES: Final = {
    408: Reason.TIMEOUT,
    409: Reason.SERVER_ERROR,  # in conflict, such as with an attempt of ours that is still being worked on
    423: Reason.SERVER_ERROR,  # locked: RFC 4918
    425: Reason.SERVER_ERROR,  # too early: RFC 8470
    429: Reason.RATE_LIMITED,
}
"""Of the statuses that say it was our fault, those that another attempt may not meet."""


def build_status_error(status: int, headers: Mapping[str, str], detail: str, now: float) -> SendError:
    """The error for an HTTP status that is no success (RFC 9110, section 15).

    Args:
        status: of the answer.
        headers: of the answer; `Retry-After` is obeyed, a date by the clock of who gave it.
        detail: one sentence for the log, without secrets.
        now: unix seconds.
    """
    if status in _TEMPORARY_STATUSES:
        return SendError(
            _TEMPORARY_STATUSES[status], Scope.ATTEMPT, detail, retry_after=parse_retry_after(headers, now)
        )
    if status in {401, 403, 407}:
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    if status in {400, 413, 414, 422, 431}:
        return SendError(Reason.REJECTED, Scope.MESSAGE, detail)
    if 300 <= status < 500:  # nothing there that takes messages: a wrong address
        return SendError(Reason.MISCONFIGURED, Scope.CHANNEL, detail)
    # A success that this provider never answers, or a 5xx that a proxy may have given after the request went through.
    wait = parse_retry_after(headers, now)
    return SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, detail, retry_after=wait, maybe_arrived=True)


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that `Retry-After` asks for, in seconds, given so or as a date (RFC 9110, section 10.2.3).

    None where there is none, or where it is nonsense. A date is compared with the answer's own `Date`, and with `now`
    only where that is missing: our clock may be another one.
    """
    value = _find_header(headers, "Retry-After")
    if value.isascii() and value.isdecimal():
        wait = float(value)
    else:
        until, since = _parse_http_date(value), parse_date(headers)
        if until is None:
            return None
        wait = max(until - (now if since is None else since), 0.0)
    return wait if wait < MAX_RETRY_AFTER else None


def parse_date(headers: Mapping[str, str]) -> float | None:
    """When an answer was given, by the clock of who gave it, unix seconds (RFC 9110, section 6.6.1)."""
    return _parse_http_date(_find_header(headers, "Date"))


def _find_header(headers: Mapping[str, str], name: str) -> str:
    """The value in any mapping, whatever the case of its keys: slack_sdk gives a plain dict."""
    return next((value.strip() for key, value in headers.items() if key.lower() == name.lower()), "")


def _parse_http_date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)  # all three forms of a date that section 5.6.7 knows
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
