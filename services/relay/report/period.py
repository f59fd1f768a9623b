"""The period of a report, as a person or a program writes it."""

import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta, tzinfo
from functools import partial
from typing import Final

from services.relay.outbox.queries.delivery_figures import Period
from services.relay.outbox.queries.delivery_list import parse_since, parse_time
from shared.http.json_api import parse_parameter

DEFAULT_SINCE: Final = "30d"
PARAMETERS: Final = ("since", "from", "to")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXPECTED_TIME: Final = "expected a date such as 2026-11-30, or a time with its zone, such as 2026-11-30T22:00:00Z"


def parse_period(parameters: Mapping[str, str], now: float, zone: tzinfo) -> Period:
    """The period that `since`, or `from` and `to`, name. Raises ValueError with what was expected.

    Args:
        parameters: `since` is a duration until now, or a time; `from` and `to` are times, or dates, each of which is
            in the period. Without `to` it ends now, and without any of them it is the last 30 days; an empty one is
            none.
        now: unix seconds.
        zone: the readers'; a date begins at its midnight.
    """
    given = {name: value for name, value in parameters.items() if name in PARAMETERS and value}
    if "since" in given and len(given) > 1:
        raise ValueError("since: expected alone, or `from` and `to` without it")
    if "from" not in given:
        if "to" in given:
            raise ValueError("from: missing; expected beside `to`")
        begin = parse_parameter("since", partial(parse_since, now=now), {"since": DEFAULT_SINCE, **given}) or 0.0
        if begin >= now:
            raise ValueError("since: expected a time before now")
        return Period(begin, now)
    since = parse_parameter("from", lambda text: _parse_moment(text, zone, 0), given) or 0.0
    until = parse_parameter("to", lambda text: _parse_moment(text, zone, 1), given)
    period = Period(since, now if until is None else until)
    if period.since >= period.until:
        raise ValueError("from: expected before `to`, and before now")
    return period


def _parse_moment(text: str, zone: tzinfo, days: int) -> float:
    """A time, or the midnight so many days after a date."""
    try:
        if not _DATE.fullmatch(text):
            return parse_time(text)
        day = date.fromisoformat(text) + timedelta(days=days)
        return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(_EXPECTED_TIME) from None
