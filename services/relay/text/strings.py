"""Clean strings, safe links, times for readers, and what fits: text of anybody in, what any channel may show out."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import takewhile
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from services.relay.model import Alert, Status

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters, tab and newline excepted
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the direction: https://trojansource.codes
    "\ud800-\udfff\ufeff]"  # half a character, which no encoding takes
)
# Slack takes 3,000 for a button, PagerDuty and browsers at least 2,000; three long and three short ones must fit into
# one message.
MAX_URL: Final = 1_900
MAX_SHORT_URL: Final = 650
"""For links that keypulse builds itself, from a few labels."""


class Link(NamedTuple):
    """A link with its text."""

    text: str
    url: str


def clean_text(text: str) -> str:
    """The text without invisible characters; every kind of line end becomes a newline."""
    if text.isprintable():  # as almost always: nothing in it is invisible, or ends a line
        return text.strip()
    return _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)).strip()


def clean_line(text: str) -> str:
    """The text on one line, with single spaces."""
    if not text.isprintable():
        return " ".join(clean_text(text).split())
    return " ".join(text.split()) if "  " in text else text.strip()


def truncate(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


T = TypeVar("T")


def build_distinct(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The pairs by their names, which were cut: one that is there already ends in its number."""
    found: dict[str, T] = {}
    for name, value in pairs:
        found[f"{name[:-4]}…{len(found)}" if name in found else name] = value
    return found


def fit(parts: Iterable[Sequence[T]], *limits: tuple[int, Callable[[T], int]]) -> Iterator[T | None]:
    """Of each part the first of its forms that fits into what the parts before it left; None where no form does.

    Args:
        parts: the most important first; each has its forms, the fullest first.
        limits: of all parts together, with what measures a form.
    """
    left = [limit for limit, _ in limits]
    for forms in parts:
        for form in forms:
            rest = [have - measure(form) for have, (_, measure) in zip(left, limits, strict=True)]
            if min(rest) >= 0:
                left = rest
                yield form
                break
        else:
            yield None


def fit_first(items: Iterable[T], limit: int, measure: Callable[[T], int]) -> list[T]:
    """The items before the first that does not fit; those after it are not even built."""
    return list(takewhile(lambda item: item is not None, fit(((item,) for item in items), (limit, measure))))  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def sanitize_url(url: str | None) -> str | None:
    """An http(s) URL in which nothing ends a link in any medium.

    None if it is none, holds a user or a password (which may be a secret, or make a host look like another), or is
    longer than media take.
    """
    if not url or len(url) > MAX_URL or re.search(r"[\s\\]", url) or url != clean_text(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    return quote_url(url)


def quote_url(url: str) -> str | None:
    """The URL with everything percent-encoded that has no meaning in one (RFC 3986); None if it is then too long.

    Raises ValueError for half a surrogate pair.
    """
    quoted = quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")
    return quoted if len(quoted) <= MAX_URL else None


_ROUND_FROM = timedelta(minutes=10)
"""From here on a duration has no seconds."""


def format_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """Such as `2026-11-24 22:46:10 UTC`, or `2026-11-24 23:46:10 CET (22:46:10 UTC)`."""
    return _format_utc_time(moment.astimezone(UTC), zone, "%H:%M:%S")


def format_short_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """To the minute, for tables: `2026-11-24 22:46 UTC`, or `2026-11-24 23:46 CET (22:46 UTC)`."""
    return _format_utc_time(moment.astimezone(UTC), zone, "%H:%M")


@lru_cache(maxsize=256)  # the messages of a storm name the same other incidents
def _format_utc_time(moment: datetime, zone: tzinfo, pattern: str) -> str:
    try:
        there = moment.astimezone(zone)
    except OverflowError:  # at the edge of the calendar
        there = moment
    time = f"{moment:{pattern}} UTC"
    if there.utcoffset() == timedelta():
        return f"{_format_day(moment)} {time}"
    in_utc = time if there.date() == moment.date() else f"{_format_day(moment)} {time}"
    return f"{_format_day(there)} {there:{pattern}} {_name_zone(there)} ({in_utc})"


def format_duration(span: timedelta) -> str:
    """In its two largest units: `8 s`, `2 min 5 s`, `12 min`, `2 h 3 min`, `1 d 4 h`."""
    seconds = max(0, round(span.total_seconds()))
    if seconds >= _ROUND_FROM.total_seconds():
        seconds = round(seconds / 60) * 60
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3_600)
    minutes, seconds = divmod(seconds, 60)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    first = next((index for index, (number, _) in enumerate(units) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2] if number) or "0 s"


def format_seconds(seconds: float | None) -> str:
    """Exact, such as `640 ms`, `4.2 s`, `40 s` or `6 min 40 s`; a hyphen for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    return format_duration(timedelta(seconds=seconds))


def format_period(alert: Alert, zone: tzinfo = UTC) -> str:
    """Since when it fires, or from when to when it fired."""
    start = format_time(alert.starts_at, zone)
    if alert.status is Status.FIRING:
        return f"firing since {start}"
    if alert.ends_at is None:
        return f"resolved; fired from {start}"
    end, duration = format_time(alert.ends_at, zone), format_duration(alert.ends_at - alert.starts_at)
    return f"resolved; fired from {start} to {end} ({duration})"


def format_short_period(alert: Alert, zone: tzinfo = UTC) -> str:
    """The same for a table: `firing since 2026-11-24 22:46 UTC`, or `resolved after 12 min`."""
    if alert.status is Status.FIRING:
        return f"firing since {format_short_time(alert.starts_at, zone)}"
    return f"resolved after {format_duration(alert.ends_at - alert.starts_at)}" if alert.ends_at else "resolved"


def _format_day(moment: datetime) -> str:
    return moment.date().isoformat()  # strftime writes year 1 without its zeros


def _name_zone(moment: datetime) -> str:
    """`CET`; `UTC+03` where the zone has no letters."""
    name = moment.tzname() or "UTC"
    return f"UTC{name}" if name[0] in "+-" else name
