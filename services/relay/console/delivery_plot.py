"""The deliveries of the last hours as a plot: steps of a period in, the shapes of an SVG out. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.relay.outbox.queries.delivery_times import DeliveryTimes
from shared.web.log_scale import LogScale, Tick

STEP_SECONDS: Final = 300
STEPS: Final = 72
"""Six hours."""
WIDTH: Final = 720
COUNT_HEIGHT: Final = 60
TIME_HEIGHT: Final = 120
MIN_SECONDS: Final = 0.01
"""Seconds; shorter times are drawn at this one."""
_STEP_WIDTH: Final = WIDTH / STEPS
_GAP: Final = 1.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class DeliveryPlot:
    """What is drawn: counts above, in units of WIDTH x COUNT_HEIGHT; times below, WIDTH x TIME_HEIGHT."""

    delivered: Sequence[Bar]
    dead: Sequence[Bar]
    """Above those that were delivered."""
    max_count: int
    """The height of the counts."""
    p50: str
    """The `d` of an SVG path, a level for each step; empty if nothing was delivered."""
    p95: str
    worst: str
    ticks: Sequence[Tick]
    """Of the times; empty if nothing was delivered."""
    steps: Sequence[DeliveryTimes]
    """Those with a delivery, the newest first; for the table."""
    delivered_total: int
    dead_total: int
    worst_seconds: float | None


def find_start(now: float) -> float:
    """When the first step of the plot starts, unix seconds."""
    return (math.floor(now / STEP_SECONDS) - STEPS + 1) * float(STEP_SECONDS)


def build_plot(steps: Mapping[float, DeliveryTimes], start: float) -> DeliveryPlot | None:
    """The plot of the steps from `start` on; None if no delivery ended in them."""
    visible = [step for _, step in sorted(steps.items()) if step.delivered or step.dead]
    if not visible:
        return None
    most = max(step.delivered + step.dead for step in visible)
    timed = [step for step in visible if step.p50 is not None]
    scale = LogScale(
        min((step.p50 or 0.0 for step in timed), default=1.0),
        max((step.worst or 0.0 for step in timed), default=1.0),
        TIME_HEIGHT,
        MIN_SECONDS,
    )

    def path(values: Iterable[tuple[float, float | None]]) -> str:
        return _build_path([(x, scale.compute_y(value)) for x, value in values if value is not None])

    def find_x(step: DeliveryTimes) -> float:
        return round((step.start - start) / STEP_SECONDS * _STEP_WIDTH, 2)

    return DeliveryPlot(
        delivered=[_build_bar(find_x(step), 0, step.delivered, most) for step in visible if step.delivered],
        dead=[_build_bar(find_x(step), step.delivered, step.dead, most) for step in visible if step.dead],
        max_count=most,
        p50=path((find_x(step), step.p50) for step in timed),
        p95=path((find_x(step), step.p95) for step in timed),
        worst=path((find_x(step), step.worst) for step in timed),
        ticks=scale.ticks if timed else (),
        steps=list(reversed(visible)),
        delivered_total=sum(step.delivered for step in visible),
        dead_total=sum(step.dead for step in visible),
        worst_seconds=max((step.worst for step in timed if step.worst is not None), default=None),
    )


def _build_bar(x: float, below: int, count: int, most: int) -> Bar:
    """One of a count that stands on another; a few are never too low to be seen."""
    height = max(COUNT_HEIGHT * count / most, 1.5)
    top = max(COUNT_HEIGHT - COUNT_HEIGHT * below / most - height, 0.0)
    return Bar(x, round(top, 2), round(_STEP_WIDTH - _GAP, 2), round(height, 2))


def _build_path(levels: Sequence[tuple[float, float]]) -> str:
    """A level for each step, joined where the next one follows at once."""
    parts: list[str] = []
    previous: float | None = None
    for x, y in levels:
        joined = previous is not None and abs(x - previous - _STEP_WIDTH) < 0.01
        parts.append(f"{'L' if joined else 'M'}{x:g} {y:.1f}h{_STEP_WIDTH:g}")
        previous = x
    return "".join(parts)
