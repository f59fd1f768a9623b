"""What is drawn: data alone, so that it crosses to the process that draws as JSON. No I/O."""

from collections.abc import Sequence
from typing import Final

import msgspec

READY: Final = b"ready"
"""What the process that draws writes first."""


class ChartLine(msgspec.Struct):
    """A line."""

    label: str
    """Empty where it is the only one."""
    points: Sequence[tuple[float, float]]
    """Unix seconds and value, oldest first."""


class ChartThreshold(msgspec.Struct):
    """What the lines are compared with."""

    text: str
    points: Sequence[tuple[float, float]]


class ChartSpec(msgspec.Struct):
    """A chart. Times are unix seconds."""

    title: str
    zone: str
    """The readers' time zone, such as `Europe/Berlin`."""
    start: float
    end: float
    lines: Sequence[ChartLine]
    more_lines: int
    """How many are left out."""
    thresholds: Sequence[ChartThreshold]
    firing_from: float
    firing_to: float | None
    """None while it fires."""
