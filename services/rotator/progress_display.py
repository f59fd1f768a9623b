"""Shows the progress of a command: a bar with counts and the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.rotator.model import ProgressReporter, StepProgress

_LINE_INTERVAL: Final = 5.0
"""Seconds between two lines of progress, at least."""


class LineReporter:
    """One line a step, and one now and then in between, on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, float("-inf")

    def report_step(self, name: str, detail: str = "") -> None:
        """See `ProgressReporter`."""
        click.echo(f"{name}: {detail}" if detail else f"{name} …", err=True)

    def report_progress(self, progress: StepProgress) -> None:
        """See `ProgressReporter`."""
        if self._clock() >= self._next or progress.done == progress.total:
            click.echo(_format_count(progress), err=True)
            self._next = self._clock() + _LINE_INTERVAL


class BarReporter:
    """The same on a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def report_step(self, name: str, detail: str = "") -> None:
        """See `ProgressReporter`."""
        self._bar.console.print(f"{name}: {detail}" if detail else f"{name} …", markup=False, highlight=False)

    def report_progress(self, progress: StepProgress) -> None:
        """See `ProgressReporter`. The bar and its time left are of all steps."""
        counted, calls, of = _format_count(progress), progress.calls, progress.total_calls
        if self._task is None:  # what an earlier runner did has taken none of our time
            self._task = self._bar.add_task(counted, completed=calls, total=of)
        self._bar.update(self._task, description=counted, completed=calls, total=of)


def _format_count(progress: StepProgress) -> str:
    return f"{progress.step}: {progress.done} of {progress.total} data keys"


@contextmanager
def open_progress() -> Iterator[ProgressReporter]:
    """Whichever fits to standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineReporter()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield BarReporter(bar)
