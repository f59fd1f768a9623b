"""Tells a person who waits: a bar with counts and the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.rotator.model import Amount, Tell

_LINE_EVERY: Final = 5.0
"""Seconds between two lines of progress, at least."""


class Lines:
    """One line a step, and one now and then in between, on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, float("-inf")

    def step(self, name: str, detail: str = "") -> None:
        """See `Tell`."""
        click.echo(f"{name}: {detail}" if detail else f"{name} …", err=True)

    def progress(self, amount: Amount) -> None:
        """See `Tell`."""
        if self._clock() >= self._next or amount.done == amount.total:
            click.echo(_counted(amount), err=True)
            self._next = self._clock() + _LINE_EVERY


class Bar:
    """The same on a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def step(self, name: str, detail: str = "") -> None:
        """See `Tell`."""
        self._bar.console.print(f"{name}: {detail}" if detail else f"{name} …", markup=False, highlight=False)

    def progress(self, amount: Amount) -> None:
        """See `Tell`. The bar and its time left are of all steps."""
        counted, calls, of = _counted(amount), amount.calls, amount.all_calls
        if self._task is None:  # what an earlier runner did has taken none of our time
            self._task = self._bar.add_task(counted, completed=calls, total=of)
        self._bar.update(self._task, description=counted, completed=calls, total=of)


def _counted(amount: Amount) -> str:
    return f"{amount.step}: {amount.done} of {amount.total} data keys"


@contextmanager
def telling() -> Iterator[Tell]:
    """Whichever fits to standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield Bar(bar)
