"""Which cards a page shows, in which order, and which of them have changed since it looked last. Pure."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode

from services.exporter.history import History
from services.exporter.web.cards import Card, MaxAges, TargetOrBackendHistory, build_card, compute_expiry
from services.exporter.web.findings import HealthStatus

CARDS_PER_PAGE: Final = 50
"""Of a kind on one page."""
CARD_KINDS: Final = ("backends", "keys")
_MAX_FILTER_LENGTH: Final = 200
_PAGE_NUMBER: Final = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class BoardQuery:
    """What a person wants to see."""

    filter_text: str = ""
    """Stands in the name, the service, the light or a finding's title of what is shown."""
    pages: Mapping[str, int] = field(default_factory=dict)
    """The page of a kind, from 1."""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "BoardQuery":
        """From a query string; a number that is none counts as not given."""
        pages = {kind: int(query[kind]) for kind in CARD_KINDS if _PAGE_NUMBER.fullmatch(query.get(kind, ""))}
        return cls(query.get("q", "").strip()[:_MAX_FILTER_LENGTH], pages)

    def build_link(self, kind: str, page: int) -> str:
        """The address of another page of a kind, the rest as it is."""
        text = {"q": self.filter_text} if self.filter_text else {}
        return f"/?{urlencode({**text, **self.pages, kind: page})}"


@dataclass(frozen=True, slots=True)
class Section:
    """The cards of one kind."""

    kind: str
    card_ids: tuple[str, ...]
    """The ids of those shown."""
    changed_cards: tuple[Card, ...]
    """Those of them that are not as they were at the last look, or all; their records are copies."""
    total: int
    """How many match, on all pages."""
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Board:
    """One look at everything."""

    created_at: float
    """Unix seconds."""
    history_version: int
    """Of the history."""
    status_counts: Mapping[HealthStatus, int]
    """How many have each light, whatever is asked for."""
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class BoardCursor:
    """When and at what a page looked."""

    version: int
    viewed_at: float


class CardCache:
    """The head of each record, made anew only where the record has changed, or time has turned it."""

    def __init__(self, max_ages: MaxAges) -> None:
        """`max_age`: for how long what was found last counts."""
        self._max_age = max_ages
        self._cards: dict[Hashable, tuple[Hashable, Card]] = {}

    def build_all(self, history: History, now: float) -> dict[str, list[Card]]:
        """By kind. Those of records that are forgotten are forgotten, too."""
        known, self._cards = self._cards, {}

        def one(key: Hashable, history: TargetOrBackendHistory) -> Card:
            state = history.version, compute_expiry(history, now, self._max_age)
            made = known.get(key)
            if made is None or made[0] != state:
                made = state, build_card(history, now, self._max_age)
            self._cards[key] = made
            return made[1]

        return {
            "backends": [one(("backends", *name), record) for name, record in history.backends.items()],
            "keys": [one(("keys", name), record) for name, record in history.targets.items()],
        }

    def has_changed(self, card: Card, now: float, cursor: BoardCursor) -> bool:
        """Whether it is not as it was at the last look."""
        record = card.history
        turns = (compute_expiry(record, at, self._max_age) for at in (now, cursor.viewed_at))
        return record.version > cursor.version or next(turns) != next(turns)


def build_board(history: History, cards: CardCache, query: BoardQuery, now: float, cursor: BoardCursor | None = None) -> Board:
    """The board right now.

    Args:
        history: what is known.
        cards: the same at every look.
        query: what is wanted of it.
        now: Unix seconds.
        cursor: the look before, if there was one.
    """

    def section(kind: str, cards: list[Card]) -> Section:
        lights.update(head.status for head in cards)
        words = query.filter_text.casefold()
        matching = sorted((head for head in cards if words in head.search_text), key=lambda head: head.sort_key)
        pages = max(1, -(-len(matching) // CARDS_PER_PAGE))
        page = min(query.pages.get(kind, 1), pages)
        shown = matching[(page - 1) * CARDS_PER_PAGE : page * CARDS_PER_PAGE]
        order = tuple(head.id for head in shown)
        fresh = [head for head in shown if cursor is None or cards.has_changed(head, now, cursor)]
        return Section(
            kind,
            order,
            tuple(replace(head, history=head.history.copy(now)) for head in fresh),
            len(matching),
            page,
            pages,
        )

    lights: Counter[HealthStatus] = Counter()
    sections = tuple(section(kind, known) for kind, known in cards.build_all(history, now).items())
    return Board(now, history.version, lights, sections)
