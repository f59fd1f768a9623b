from datetime import UTC, datetime

import pytest
from multidict import CIMultiDict

from services.relay.channels.requests import parse_retry_after

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        (" 30 ", 30.0),
        # The three forms of RFC 9110, section 5.6.7.
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun Nov  6 08:49:37 1994", 30.0),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("soon", None),
        ("", None),
        ("-1", None),
        ("1e9", None),
        ("٣", None),
        ("99999999999", None),
        ("9" * 5_000, None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(given: str, seconds: float | None) -> None:
    assert parse_retry_after({"Retry-After": given}, NOW) == seconds


@pytest.mark.parametrize(
    ("name", "date", "until", "seconds"),
    [
        ("Date", "Sun, 06 Nov 1994 07:49:07 GMT", "Sun, 06 Nov 1994 07:49:37 GMT", 30.0),  # its clock is behind ours
        ("date", "Sun, 06 Nov 1994 09:49:07 GMT", "Sun, 06 Nov 1994 09:49:37 GMT", 30.0),
        ("Date", "yesterday", "Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
    ],
)
def test_a_date_is_compared_with_the_response_s_own_date(name: str, date: str, until: str, seconds: float) -> None:
    assert parse_retry_after(CIMultiDict({name: date, "retry-after": until}), NOW) == seconds


def test_a_response_without_the_header_requests_no_wait() -> None:
    assert parse_retry_after({}, NOW) is None
