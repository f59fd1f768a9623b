"""The last hour of a target as a small plot: round trips in, the lines of an SVG out. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.exporter.history import ROUND_TRIP_WINDOW, RoundTrips
from shared.web.log_scale import LogScale, Tick

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
    """A line breaks where a round trip has no value of its own, not where none was due."""
    line: list[str] = []
    for step in points_with_probes:
        if step in heights:
            line.append(f"{_compute_x(step):g},{heights[step]:.1f}")
        elif line:
            yield " ".join(line)
            line = []
    if line:
        yield " ".join(line)
