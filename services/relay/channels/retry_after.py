"""Parses `Retry-After`: how long a provider asks the relay to wait before the next request."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

_MAX_SECONDS: Final = 1_000_000.0
"""A longer wait is ignored as an error."""


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by the header `Retry-After`, a number or a date (RFC 9110, section 10.2.3).

    None if the header is absent or invalid. A date is compared with the response's own `Date`, and with `now` only if
    that is missing: the clock of this machine may differ.

    Args:
        headers: of the response.
        now: unix seconds.
    """
    value = _find_header(headers, "Retry-After")
    if value.isascii() and value.isdecimal():
        wait = float(value)
    else:
        until, since = _parse_http_date(value), parse_date(headers)
        if until is None:
            return None
        wait = max(until - (now if since is None else since), 0.0)
    return wait if wait < _MAX_SECONDS else None


def parse_date(headers: Mapping[str, str]) -> float | None:
    """The header `Date`: when the server sent the response, by its clock, unix seconds (RFC 9110, section 6.6.1)."""
    return _parse_http_date(_find_header(headers, "Date"))


def _find_header(headers: Mapping[str, str], name: str) -> str:
    """A header's value, whatever the case of its name: slack_sdk gives a plain dict."""
    return next((value.strip() for key, value in headers.items() if key.lower() == name.lower()), "")


def _parse_http_date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)  # all three date formats of section 5.6.7
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
