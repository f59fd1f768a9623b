"""The last hour of a target as a small plot: round trips in, the lines of an SVG out. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.exporter.history import WINDOW, RoundTrips

WIDTH = 360
HEIGHT = 60
STEPS = 120
"""Points of a line, half a minute each; of several round trips in one the slowest is shown."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn, in units of WIDTH x HEIGHT, the hour from left to right."""

    encrypt: tuple[str, ...]
    """Lines as the `points` of an SVG polyline; a new one after each gap."""
    decrypt: tuple[str, ...]
    failures: tuple[float, ...]
    """Where a round trip failed: x."""
    top: float
    """Seconds at the upper edge."""


def plot(trips: RoundTrips, now: float) -> Plot | None:
    """The plot of the hour before `now`; None where nothing was tried in it."""
    steps = [_step(at, now) for at in trips.at]
    if not any(0 <= step < STEPS for step in steps):
        return None
    encrypt, decrypt = _slowest(steps, trips.encrypt), _slowest(steps, trips.decrypt)
    top = max([*encrypt.values(), *decrypt.values()], default=0.0) or 0.001
    failed = {step for step, ok in zip(steps, trips.ok, strict=True) if not ok and 0 <= step < STEPS}
    tried = sorted({step for step in steps if 0 <= step < STEPS})
    return Plot(
        tuple(_lines(encrypt, tried, top)), tuple(_lines(decrypt, tried, top)), tuple(map(_x, sorted(failed))), top
    )


def _step(at: float, now: float) -> int:
    return math.ceil((at - now + WINDOW) / WINDOW * STEPS) - 1  # the last one holds what is now


def _x(step: int) -> float:
    return round((step + 0.5) * WIDTH / STEPS, 1)


def _slowest(steps: Sequence[int], seconds: Iterable[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for step, value in zip(steps, seconds, strict=True):
        if 0 <= step < STEPS and not math.isnan(value):
            found[step] = max(value, found.get(step, 0.0))
    return found


def _lines(values: dict[int, float], tried: Sequence[int], top: float) -> Iterable[str]:
    """A line breaks where a round trip has no value of its own, not where none was due."""
    line: list[str] = []
    for step in tried:
        if step in values:
            line.append(f"{_x(step):g},{HEIGHT - values[step] / top * (HEIGHT - 4) - 2:.1f}")
        elif line:
            yield " ".join(line)
            line = []
    if line:
        yield " ".join(line)
