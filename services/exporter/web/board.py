"""Which cards a page shows, in which order, and which of them have changed since it looked last. Pure."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode

from services.exporter.history import History
from services.exporter.web.cards import Head, MaxAge, Record, head, turned
from services.exporter.web.findings import Light

CARDS: Final = 50
"""Of a kind on one page."""
KINDS: Final = ("backends", "keys")
_FILTER: Final = 200
_PAGE: Final = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person wants to see."""

    text: str = ""
    """Stands in the name, the service, the light or a finding's title of what is shown."""
    pages: Mapping[str, int] = field(default_factory=dict)
    """The page of a kind, from 1."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Asked":
        """From a query string; a number that is none counts as not given."""
        pages = {kind: int(query[kind]) for kind in KINDS if _PAGE.fullmatch(query.get(kind, ""))}
        return cls(query.get("q", "").strip()[:_FILTER], pages)

    def link(self, kind: str, page: int) -> str:
        """The address of another page of a kind, the rest as it is."""
        text = {"q": self.text} if self.text else {}
        return f"/?{urlencode({**text, **self.pages, kind: page})}"


@dataclass(frozen=True, slots=True)
class Section:
    """The cards of one kind."""

    kind: str
    order: tuple[str, ...]
    """The ids of those shown."""
    fresh: tuple[Head, ...]
    """Those of them that are not as they were at the last look, or all; their records are copies."""
    total: int
    """How many match, on all pages."""
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Board:
    """One look at everything."""

    at: float
    """Unix seconds."""
    version: int
    """Of the history."""
    lights: Mapping[Light, int]
    """How many have each light, whatever is asked for."""
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """When and at what a page looked."""

    version: int
    at: float


class Heads:
    """The head of each record, made anew only where the record has changed, or time has turned it."""

    def __init__(self, max_age: MaxAge) -> None:
        """`max_age`: for how long what was found last counts."""
        self._max_age = max_age
        self._known: dict[Hashable, tuple[Hashable, Head]] = {}

    def of(self, history: History, now: float) -> dict[str, list[Head]]:
        """By kind. Those of records that are forgotten are forgotten, too."""
        known, self._known = self._known, {}

        def one(key: Hashable, record: Record) -> Head:
            state = record.version, turned(record, now, self._max_age)
            made = known.get(key)
            if made is None or made[0] != state:
                made = state, head(record, now, self._max_age)
            self._known[key] = made
            return made[1]

        return {
            "backends": [one(("backends", *name), record) for name, record in history.backends.items()],
            "keys": [one(("keys", name), record) for name, record in history.targets.items()],
        }

    def changed(self, shown: Head, now: float, last: Look) -> bool:
        """Whether it is not as it was at the last look."""
        record = shown.record
        turns = (turned(record, at, self._max_age) for at in (now, last.at))
        return record.version > last.version or next(turns) != next(turns)


def look(history: History, heads: Heads, asked: Asked, now: float, last: Look | None = None) -> Board:
    """The board right now.

    Args:
        history: what is known.
        heads: the same at every look.
        asked: what is wanted of it.
        now: Unix seconds.
        last: the look before, if there was one.
    """

    def section(kind: str, known: list[Head]) -> Section:
        lights.update(head.light for head in known)
        words = asked.text.casefold()
        matching = sorted((head for head in known if words in head.text), key=lambda head: head.order)
        pages = max(1, -(-len(matching) // CARDS))
        page = min(asked.pages.get(kind, 1), pages)
        shown = matching[(page - 1) * CARDS : page * CARDS]
        order = tuple(head.id for head in shown)
        fresh = [head for head in shown if last is None or heads.changed(head, now, last)]
        return Section(
            kind,
            order,
            tuple(replace(head, record=head.record.copy(now)) for head in fresh),
            len(matching),
            page,
            pages,
        )

    lights: Counter[Light] = Counter()
    sections = tuple(section(kind, known) for kind, known in heads.of(history, now).items())
    return Board(now, history.version, lights, sections)
