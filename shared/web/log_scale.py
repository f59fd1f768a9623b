"""A logarithmic scale for seconds in a plot: what is usual keeps its shape beside one value a thousand times as large.

Nothing is cut off, and ten times as slow is as high a step in every plot. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DECADE_STEPS = (1, 2, 5)
_MAX_TICKS = 5


@dataclass(frozen=True, slots=True)
class Tick:
    seconds: float
    y: float
    """In percent of the height, from the top."""


class LogScale:
    """From 1, 2, 5, 10, and so on, around all values: a decade at least, so that noise does not look like a change.

    Args:
        min_seconds: the smallest value.
        max_seconds: the largest one.
        height: of the plot.
        smallest: seconds; smaller values are drawn at this one.
    """

    def __init__(self, min_seconds: float, max_seconds: float, height: float, smallest: float) -> None:
        self._height, self._smallest = height, smallest
        self._marks = _build_marks(max(min_seconds, smallest), max(max_seconds, smallest))
        self.ticks = tuple(Tick(mark, round(100 * self.compute_y(mark) / height, 1)) for mark in _choose(self._marks))
        """From the lower edge to the upper one."""

    def compute_y(self, seconds: float) -> float:
        marks = self._marks
        up = math.log(max(seconds, self._smallest) / marks[0]) / math.log(marks[-1] / marks[0])
        return self._height * (1 - min(max(0.0, up), 1.0))


def _build_marks(min_seconds: float, max_seconds: float) -> list[float]:
    first = math.floor(math.log10(min_seconds))
    marks = [
        step * 10.0**power for power in range(first, math.ceil(math.log10(max_seconds)) + 2) for step in _DECADE_STEPS
    ]
    low = max((n for n, mark in enumerate(marks) if mark <= min_seconds * (1 + 1e-6)), default=0)
    high = next(n for n, mark in enumerate(marks) if mark >= max_seconds * (1 - 1e-6))
    return marks[low : max(high, low + len(_DECADE_STEPS)) + 1]


def _choose(marks: Sequence[float]) -> Sequence[float]:
    """Only 1, 10, 100 where two of them are there, and of many every second one: more would not fit."""
    decades = [mark for mark in marks if math.isclose(math.log10(mark), round(math.log10(mark)), abs_tol=1e-9)]
    return decades[:: 1 + len(decades) // _MAX_TICKS] if len(decades) > 1 else marks
