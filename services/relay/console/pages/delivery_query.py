"""The address of a list of deliveries: its filters and its position, and the links to the pages beside it. Pure."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from services.relay.outbox.queries.delivery_list import check_text, parse_since, parse_state
from services.relay.outbox.queries.delivery_search import DeliveryFilter, Position
from shared.http.pagination import format_cursor, parse_cursor

PATH: Final = "/deliveries"
_MAX_TEXT: Final = 200


def _parse_text(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters")
    return check_text(text)


def _parse_time(text: str, now: float) -> float:
    """A time of a form, which is in UTC, or one with its zone, or a duration until now."""
    with suppress(ValueError):
        return parse_since(text, now)
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the year 0, or 10000
        raise ValueError("expected a time in UTC, such as 2026-11-24T22:46, or a duration such as 1h") from None
    return in_utc.timestamp()


_FIELDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "text": _parse_text,
    "state": parse_state,
    "channel": _parse_text,
    "alertname": _parse_text,
    "service": _parse_text,
    "digest": _parse_text,
}
"""The parameters that filter, as `GET /api/deliveries` names them; those of `_TIMES` do, too."""
_TIMES: Final = ("since", "until")


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """What a person wants to see of the list."""

    given: Mapping[str, str]
    """The filters as they were written; those that are empty are absent."""
    filter: DeliveryFilter
    position: Position
    problems: Mapping[str, str]
    """What is wrong with a filter, by its name."""

    @property
    def is_newest(self) -> bool:
        """Whether the page begins with the newest."""
        return self.position == Position()

    def get(self, name: str) -> str:
        """A filter as a form shows it."""
        if name not in _TIMES:
            return self.given.get(name, "")
        value: float | None = getattr(self.filter, name)
        return "" if value is None else datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M")

    def build_link(self, *, before: int | None = None, after: int | None = None, **changes: str) -> str:
        """The address of another page, with the same filters but for the changes; an empty one is taken away."""
        position = {"before": format_cursor(before), "after": format_cursor(after)}
        given = {name: value for name, value in {**self.given, **changes, **position}.items() if value}
        return f"{PATH}?{urlencode(given)}" if given else PATH


def parse_query(parameters: Mapping[str, str], now: float) -> DeliveryQuery:
    """What the address of the page says; a parameter that is unknown is ignored."""
    fields: dict[str, Callable[[str], Any]] = {**_FIELDS, **dict.fromkeys(_TIMES, partial(_parse_time, now=now))}
    given = {name: parameters[name].strip() for name in fields if parameters.get(name, "").strip()}
    problems, values, position = {}, {}, {}
    for name, text in given.items():
        try:
            values[name] = fields[name](text)
        except (ValueError, OverflowError) as error:
            problems[name] = str(error)
    for name in ("before", "after"):
        if parameters.get(name):
            try:
                position[name] = parse_cursor(parameters[name])
            except ValueError:
                problems[name] = "expected a link of this page"
    return DeliveryQuery(given, DeliveryFilter(**values), Position(**position), problems)
