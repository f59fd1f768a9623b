"""Thirty days of a channel as a matrix: a row for each day in UTC, the newest first, a column for each cell. Pure."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from services.relay.proofs.queries import PARTLY, PROVEN, Ended

DAYS: Final = 30
DAY: Final = 86400
_CELLS: Final = (900, 1800, 3600, 7200, 14400, 21600, 43200)
"""Seconds: parts of a day."""
ROW: Final = 12
_BARS: Final = {PROVEN: (4, 5), PARTLY: (2, 8)}
"""From the top of a row, and how high: what is worse is higher, so that nobody needs the colours."""
_LOST: Final = (0, 11)


def choose_cell(every: float) -> int:
    """The seconds of a cell: an interval of 15 min at least, so that a day has 96 at most; then the worst counts."""
    return next((seconds for seconds in _CELLS if seconds >= every), DAY)


class Run(NamedTuple):
    """Cells, one after the other, that are alike."""

    outcome: str
    """`PROVEN`, `PARTLY`, or the hop at which it was lost."""
    first: int
    """Of the cell, since the epoch."""
    last: int


def find_runs(proofs: Iterable[Ended], cell_seconds: int) -> list[Run]:
    """In their order; the worst proof of a cell counts."""
    cells: dict[int, str] = {}
    for interval_at, outcome, _ in proofs:
        cell = int(interval_at // cell_seconds)
        before = cells.get(cell, PROVEN)
        if before == PROVEN or (before == PARTLY and outcome != PROVEN):
            cells[cell] = outcome
    starts = [(outcome, cell) for cell, outcome in cells.items() if cells.get(cell - 1) != outcome]
    ends = [cell for cell, outcome in cells.items() if cells.get(cell + 1) != outcome]
    return [Run(outcome, first, last) for (outcome, first), last in zip(starts, ends, strict=True)]


class Shape(NamedTuple):
    """All that ended alike."""

    outcome: str
    kind: str
    """`proven`, `partly` or `lost`."""
    path: str
    """Of SVG: a rectangle for each run, in units of a cell and of `ROW` a day."""


def draw(runs: Sequence[Run], cell_seconds: int, today: int) -> list[Shape]:
    """What is drawn of a channel up to a day, counted since the epoch; where it has no proof nothing is."""
    per_day, parts = DAY // cell_seconds, dict[str, list[str]]()
    for run in runs:
        (top, height), start = _BARS.get(run.outcome, _LOST), run.first
        while start <= run.last:
            day, column = divmod(start, per_day)
            width = min(run.last - start + 1, per_day - column)
            y = (today - day) * ROW + top
            parts.setdefault(run.outcome, []).append(f"M{column} {y}h{width}v{height}h-{width}z")
            start += width
    return [Shape(outcome, outcome if outcome in _BARS else "lost", "".join(found)) for outcome, found in parts.items()]


class Stretch(NamedTuple):
    """A time in which a channel was not wholly proven."""

    since: float
    until: float
    outcome: str | None
    """`partly`, the hop at which its proofs were lost, or None where there is none."""


def list_stretches(runs: Sequence[Run], cell_seconds: int) -> list[Stretch]:
    """The newest first."""
    found = [(run.first, run.last + 1, run.outcome) for run in runs if run.outcome != PROVEN]
    empty = [(one.last + 1, other.first, None) for one, other in pairwise(runs) if other.first > one.last + 1]
    return [
        Stretch(first * cell_seconds, end * cell_seconds, outcome)
        for first, end, outcome in sorted([*found, *empty], key=lambda each: -each[0])
    ]
