"""The board: one card with status and findings for each target and backend. Pure.

A query selects the cards of a page and their order; a cursor says which of them have changed since the last request.

The last hour of a target as a small plot: round trips in, the lines of an SVG out. Pure.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

from services.exporter.history import ROUND_TRIP_WINDOW, BackendHistory, History, RoundTrips, TargetHistory
from services.exporter.model import BackendState, CanaryResult, KeyInspection
from services.exporter.web.findings import (
    STATUS_LABELS,
    Finding,
    HealthStatus,
    build_failure_finding,
    build_stale_finding,
    build_success_expired_finding,
    find_backend_problems,
    find_key_problems,
)
from shared.backend_contract import KMS_DATA_KEYS, KMS_ROTATION_LAST_SUCCESS, LOCAL_KEK_VERSION
from shared.kms.port import KeyVersion
from shared.web.log_scale import LogScale, Tick
from shared.web.time_format import format_utc_time

MAX_LISTED_VERSIONS: Final = 10
"""Versions and canaries shown of a key."""
_DIGITS: Final = re.compile(r"(\d+)")
TargetOrBackendHistory = TargetHistory | BackendHistory


@dataclass(frozen=True, slots=True)
class MaxAges:
    """Seconds for which what was found last counts."""

    result: float
    """After these it says nothing any more."""
    success: float
    """Seconds after which a successful round trip no longer counts as a success."""


@dataclass(frozen=True, slots=True)
class Card:
    """What all cards are found and ordered by."""

    id: str
    """Fit for an attribute, whatever the names hold."""
    name: str
    service: str
    status: HealthStatus
    findings: tuple[Finding, ...]
    """The worst first."""
    history: TargetOrBackendHistory
    search_text: str
    """The text that a filter searches."""
    sort_key: tuple[HealthStatus, list[tuple[int, str]]]
    """The worst first, then by name, `key-2` before `key-10`."""
    version: int = 0
    """Cards that were built later have a higher one."""

    @property
    def status_label(self) -> str:
        return STATUS_LABELS[self.status]

    @property
    def since_label(self) -> str:
        """What the record's `since` is about: the status, or only the part of it that comes from probes and reads."""
        if isinstance(self.history, BackendHistory):
            return "health as it is since" if self.status is HealthStatus.DEGRADED else "since"
        has_succeeded = self.history.last_result is None or self.history.last_result.failed_call is None
        return "round trips succeed since" if has_succeeded and self.status is not HealthStatus.HEALTHY else "since"

    @property
    def announcement(self) -> str:
        """The text for a screen reader when it changes."""
        return ": ".join([self.name, ", ".join([self.status_label, *(finding.title for finding in self.findings[:1])])])


def build_card(history: TargetOrBackendHistory, now: float, max_ages: MaxAges) -> Card:
    """The light of a target, a backend or a replica of one; `now` in Unix seconds."""
    if isinstance(history, TargetHistory):
        return _build_target_card(history, now, max_ages)
    return _build_backend_card(history, now, max_ages)


def compute_expiry(history: TargetOrBackendHistory, now: float, max_ages: MaxAges) -> tuple[bool, bool, bool]:
    """What changes of a record with time alone: its result is old, its success has expired, its rotation is overdue."""
    if isinstance(history, BackendHistory):
        return history.read_at is not None and history.read_at + max_ages.result < now, False, False
    result, inspection = history.last_result, history.inspection
    next_rotation_at = inspection.description.next_rotation_at if inspection and inspection.description else None
    return (
        result is not None and result.ended_at + max_ages.result < now,
        result is not None and result.failed_call is None and result.ended_at + max_ages.success < now,
        next_rotation_at is not None and next_rotation_at < now,
    )


def _build_target_card(history: TargetHistory, now: float, max_ages: MaxAges) -> Card:
    fails = history.last_result is not None and history.last_result.failed_call is not None
    findings = (
        list(find_key_problems(history.inspection, now, history.key, round_trip_fails=fails))
        if history.inspection
        else []
    )
    if history.last_result is None:
        light = HealthStatus.UNKNOWN
    elif history.last_result.failed_call and history.failure_spans:
        light = HealthStatus.FAILING
        findings.append(build_failure_finding(history.failure_spans[-1], history))
    else:
        light = HealthStatus.HEALTHY
    is_stale, is_success_expired, _ = compute_expiry(history, now, max_ages)
    if history.last_result and is_success_expired:
        findings.append(build_success_expired_finding(history.last_result.ended_at))
    elif history.last_result and is_stale:
        findings.append(build_stale_finding(f"No round trip since {format_utc_time(history.last_result.ended_at)}"))
    return _assemble_card("key", history.target, history.service, light, findings, history)


def _build_backend_card(history: BackendHistory, now: float, max_ages: MaxAges) -> Card:
    findings = [] if history.state is None else list(find_backend_problems(history.state))
    light = HealthStatus.UNKNOWN if history.state is None else HealthStatus.HEALTHY
    if history.read_at is not None and compute_expiry(history, now, max_ages)[0]:
        findings.append(build_stale_finding(f"Not read since {format_utc_time(history.read_at)}"))
    name = history.service if history.replica is None else f"{history.service} {history.replica}"
    return _assemble_card("backend", name, history.service, light, findings, history)


def _assemble_card(
    kind: str,
    name: str,
    service: str,
    status: HealthStatus,
    findings: list[Finding],
    history: TargetOrBackendHistory,
) -> Card:
    worst_first = tuple(sorted(findings, key=lambda finding: finding.status))
    status = min([status, *(finding.status for finding in worst_first)])
    card_id = sha256(f"{service}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    text = "\n".join([name, service, STATUS_LABELS[status], *(finding.title for finding in worst_first)]).casefold()
    return Card(
        f"{kind}-{card_id}", name, service, status, worst_first, history, text, (status, _natural_sort_key(name))
    )


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    parts = _DIGITS.split(name.casefold())
    return [(int(part) if part.isdecimal() and len(part) < 20 else 0, part) for part in parts]


def get_protection_level(history: TargetHistory) -> str | None:
    """The protection level of the version that encrypted last, else of the primary version as it was read."""
    if history.last_result and history.last_result.protection_level:
        return history.last_result.protection_level
    description = history.inspection.description if history.inspection else None
    primary = description.find_version(description.primary_version) if description else None
    return primary.protection_level if primary else None


def sort_versions(inspection: KeyInspection) -> list[KeyVersion]:
    """The versions of a key, those to be destroyed first, then the newest."""
    newest_first = reversed(inspection.description.versions if inspection.description else ())
    return sorted(newest_first, key=lambda version: version.destroy_at is None)


def sort_canaries(inspection: KeyInspection) -> list[CanaryResult]:
    """The canaries of a key, those that failed first, then the newest."""
    versions = inspection.description.versions if inspection.description else ()
    age = {version.id: n for n, version in enumerate(versions)}

    def get_sort_key(canary: CanaryResult) -> tuple[bool, int]:
        return canary.call.failure is None, -age.get(canary.version, -1)

    return sorted(inspection.canaries, key=get_sort_key)


def label_versions(inspection: KeyInspection, versions: Sequence[str]) -> list[str]:
    """How a person is shown the versions."""
    return [get_version_label(inspection, version) for version in versions]


def get_version_label(inspection: KeyInspection, version: str) -> str:
    """How a person is shown a version."""
    return inspection.description.get_label(version) if inspection.description else version


def format_data_keys(state: BackendState) -> str | None:
    """How many data keys each version wraps, the version of most of them first; None if the backend does not say."""
    wrapped: dict[str, float] = {}
    for (version, _status), number in state.keyring.get(KMS_DATA_KEYS, {}).items():
        wrapped[version] = wrapped.get(version, 0.0) + number
    counted = sorted(
        ((version, count) for version, count in wrapped.items() if count),
        key=lambda entry: (-entry[1], _natural_sort_key(entry[0])),
    )
    by = [f"{count:.0f} under {'the local key' if v == LOCAL_KEK_VERSION else f'version {v}'}" for v, count in counted]
    more = [f"and {len(by) - MAX_LISTED_VERSIONS} more"] if len(by) > MAX_LISTED_VERSIONS else []
    return " · ".join(by[:MAX_LISTED_VERSIONS] + more) or None


def get_last_rotation_time(state: BackendState) -> float | None:
    """When a rotation of whatever type last succeeded, Unix seconds; None if the backend does not say."""
    return max(state.keyring.get(KMS_ROTATION_LAST_SUCCESS, {}).values(), default=None)


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
        return f"./?{urlencode({**text, **self.pages, kind: page})}"


@dataclass(frozen=True, slots=True)
class BoardSection:
    kind: str
    card_ids: tuple[str, ...]
    """The ids of those shown."""
    changed_cards: tuple[Card, ...]
    """The cards that changed since the last view, or all; their records are copies."""
    total: int
    """How many match, on all pages."""
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Board:
    created_at: float
    """Unix seconds."""
    version: int
    """Of its cards."""
    status_counts: Mapping[HealthStatus, int]
    """How many cards have each status, whatever the query."""
    sections: tuple[BoardSection, ...]


class CardCache:
    """The card of each record, built again only if the record changed, or its status changed with time."""

    def __init__(self, max_ages: MaxAges) -> None:
        self.version = 0
        """Rises with every card that is built."""
        self._max_ages = max_ages
        self._cards: dict[Hashable, tuple[Hashable, Card]] = {}

    def build_all(self, history: History, now: float) -> dict[str, list[Card]]:
        """By kind. Those of records that are forgotten are forgotten, too."""
        previous_cards, self._cards = self._cards, {}

        def one(key: Hashable, history: TargetOrBackendHistory) -> Card:
            state = history.version, compute_expiry(history, now, self._max_ages)
            cached = previous_cards.get(key)
            if cached is None or cached[0] != state:
                self.version += 1
                cached = state, replace(build_card(history, now, self._max_ages), version=self.version)
            self._cards[key] = cached
            return cached[1]

        return {
            "backends": [one(("backends", *name), record) for name, record in history.backends.items()],
            "keys": [one(("keys", name), record) for name, record in history.targets.items()],
        }


def build_board(history: History, cards: CardCache, query: BoardQuery, now: float, last_version: int = 0) -> Board:
    """The current board.

    Args:
        history: what is known.
        cards: the same cache for every view.
        query: what is wanted of it.
        now: Unix seconds.
        last_version: of the board that was viewed last, if there was one.
    """

    def build_section(kind: str, all_cards: list[Card]) -> BoardSection:
        status_counts.update(card.status for card in all_cards)
        text = query.filter_text.casefold()
        matching = sorted((card for card in all_cards if text in card.search_text), key=lambda card: card.sort_key)
        pages = max(1, -(-len(matching) // CARDS_PER_PAGE))
        page = min(query.pages.get(kind, 1), pages)
        page_cards = matching[(page - 1) * CARDS_PER_PAGE : page * CARDS_PER_PAGE]
        return BoardSection(
            kind,
            tuple(card.id for card in page_cards),
            tuple(replace(card, history=card.history.copy(now)) for card in page_cards if card.version > last_version),
            len(matching),
            page,
            pages,
        )

    status_counts: Counter[HealthStatus] = Counter()
    sections = tuple(build_section(kind, cards_) for kind, cards_ in cards.build_all(history, now).items())
    return Board(now, cards.version, status_counts, sections)


WIDTH = 360
HEIGHT = 60
POINTS = 120
"""Points of a line, half a minute each; of several round trips in one the slowest is shown."""
MIN_SECONDS = 0.0001
"""Seconds; faster calls are drawn at this value."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn, in units of WIDTH x HEIGHT, the hour from left to right."""

    encrypt: tuple[str, ...]
    """Lines as the `points` of an SVG polyline; a new one after each gap."""
    decrypt: tuple[str, ...]
    failures: tuple[float, ...]
    """Where a round trip failed: x."""
    min_seconds: float | None
    """Seconds of the fastest call that is drawn; None if no call has a length."""
    max_seconds: float | None
    """Seconds of the slowest."""
    ticks: tuple[Tick, ...]
    """From the lower edge to the upper one; none where no call has a length."""


def build_plot(round_trips: RoundTrips, now: float) -> Plot | None:
    """The plot of the hour before `now`; None if nothing was tried in it."""
    steps = [_compute_point(at, now) for at in round_trips.ended_at]
    if not any(0 <= step < POINTS for step in steps):
        return None
    encrypt, decrypt = _find_slowest(steps, round_trips.encrypt), _find_slowest(steps, round_trips.decrypt)
    lengths = [*encrypt.values(), *decrypt.values()]
    scale = LogScale(min(lengths), max(lengths), HEIGHT, MIN_SECONDS) if lengths else None
    failed = {step for step, ok in zip(steps, round_trips.succeeded, strict=True) if not ok and 0 <= step < POINTS}
    steps_in_view = sorted({step for step in steps if 0 <= step < POINTS})

    def lines(values: dict[int, float]) -> tuple[str, ...]:
        heights = {step: scale.compute_y(value) for step, value in values.items()} if scale else {}
        return tuple(_build_polylines(heights, steps_in_view))

    return Plot(
        lines(encrypt),
        lines(decrypt),
        tuple(map(_compute_x, sorted(failed))),
        min(lengths, default=None),
        max(lengths, default=None),
        scale.ticks if scale else (),
    )


def _compute_point(at: float, now: float) -> int:
    return math.ceil((at - now + ROUND_TRIP_WINDOW) / ROUND_TRIP_WINDOW * POINTS) - 1  # the last one holds what is now


def _compute_x(step: int) -> float:
    return round((step + 0.5) * WIDTH / POINTS, 1)


def _find_slowest(steps: Sequence[int], seconds: Iterable[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for step, value in zip(steps, seconds, strict=True):
        if 0 <= step < POINTS and not math.isnan(value):
            found[step] = max(value, found.get(step, 0.0))
    return found


def _build_polylines(heights: dict[int, float], points_with_probes: Sequence[int]) -> Iterable[str]:
    """A line breaks where a round trip has no value of its own, not where none was due.

    A point alone would not be drawn: it is a line from one edge of its half minute to the other.
    """
    line: list[tuple[float, float]] = []
    for step in [*points_with_probes, POINTS]:
        if step in heights:
            line.append((_compute_x(step), heights[step]))
        elif line:
            if len(line) == 1:
                half = WIDTH / POINTS / 2
                line = [(line[0][0] - half, line[0][1]), (line[0][0] + half, line[0][1])]
            yield " ".join(f"{x:g},{y:.1f}" for x, y in line)
            line = []
