"""Deliveries as a person reads them in a terminal. What an alert says is written by others: it cannot steer it."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.relay.channels.wording import one_line, readable
from services.relay.console.written import written
from services.relay.outbox.query import Attempt, Delivery, Record

_WIDE = 1000
"""Columns of a pipe: nothing is cut off or folded there."""


def show_all(deliveries: Iterable[Delivery]) -> None:
    """Prints a table with a row for each."""
    headings = ("id", "accepted", "alertname", "status", "channel", "state", "attempts", "reason")
    _print(_table(headings, map(_listed, deliveries), whole="id"))


def show(record: Record) -> None:
    """Prints all that is known of one."""
    one = record.delivery
    facts = {
        "id": one.id,
        "alertname": one.alertname,
        "status": one.status,
        "receiver": one.receiver,
        "channel": one.channel,
        "state": one.state,
        "reason": one.reason,
        "accepted": written(one.accepted_at),
        "finished": written(one.finished_at),
        "note": one.note,
        "superseded by": one.superseded_by,
        "tells of": ", ".join(record.superseded),
        "receipt": ", ".join(f"{key}={value}" for key, value in (one.receipt or {}).items()),
        "event": one.event_id,
        "incident": one.incident_id,
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text(one_line(value), overflow="fold"))
    _print(grid)
    if record.tried:
        _print("", _table(("attempt", "started", "seconds", "reason", "answer"), map(_tried, record.tried)))
    if record.payload is not None:
        _print("", "payload, credentials masked:", Text(readable(record.payload), overflow="fold"))


def _listed(one: Delivery) -> tuple[str | None, ...]:
    about = (one.id, written(one.accepted_at), one.alertname, one.status)
    return (*about, one.channel, one.state, str(one.attempts), one.reason)


def _tried(attempt: Attempt) -> tuple[str | None, ...]:
    started = written(attempt.started_at)
    return str(attempt.number), started, f"{attempt.seconds:.3f}", attempt.reason, attempt.detail


def _table(headings: Iterable[str], rows: Iterable[tuple[str | None, ...]], whole: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == whole)
    for row in rows:
        table.add_row(*(Text(one_line(cell or "")) for cell in row))
    return table


def _print(*parts: Table | Text | str) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
