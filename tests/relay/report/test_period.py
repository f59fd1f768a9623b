"""A period as a person writes it; what cannot be read is said with what was expected."""

from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

import pytest

from services.relay.report.report import parse_period

NOW = 1_800_000_000.0
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("parameters", "zone", "period"),
    [
        ({}, UTC, (NOW - 30 * 86400, NOW)),
        ({"since": "", "from": "", "to": ""}, UTC, (NOW - 30 * 86400, NOW)),  # an empty form
        ({"since": "12h", "other": "x"}, UTC, (NOW - 12 * 3600, NOW)),
        ({"since": "1d12h"}, UTC, (NOW - 36 * 3600, NOW)),
        ({"since": "99999d"}, UTC, (0.0, NOW)),
        ({"from": "2027-01-01"}, UTC, (1798761600.0, NOW)),
        ({"from": "2026-11-01", "to": "2026-11-01"}, UTC, (1793491200.0, 1793491200.0 + 86400)),
        # A day of 25 hours.
        ({"from": "2026-10-25", "to": "2026-10-25"}, BERLIN, (1792879200.0, 1792879200.0 + 25 * 3600)),
        ({"from": "2026-11-01T10:00:00+01:00", "to": "2026-11-01T10:00:00Z"}, BERLIN, (1793523600.0, 1793527200.0)),
    ],
)
def test_a_period_is_until_now_or_between_two_times(
    parameters: dict[str, str], zone: tzinfo, period: tuple[float, float]
) -> None:
    assert parse_period(parameters, NOW, zone) == period


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"since": "30d", "to": "2026-11-01"}, "since: expected alone"),
        ({"to": "2026-11-01"}, "from: missing"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "from: expected before `to`"),
        ({"from": "2999-01-01"}, "from: expected before `to`, and before now"),
        ({"from": "2026-11-31"}, "from: expected a date such as"),
        ({"from": "2026-11-01", "to": "9999-12-31"}, "to: expected a date such as"),
        ({"from": "2026-11-01T10:00:00"}, "from: expected a date such as"),
        *(({"since": text}, "since: expected a duration such as 1h") for text in ("x", "30", "0d", "-1d", "1e9d")),
        ({"since": "2999-01-01T00:00:00Z"}, "since: expected a time before now"),
    ],
)
def test_what_is_no_period_is_refused_with_what_was_expected(parameters: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_period(parameters, NOW, UTC)
