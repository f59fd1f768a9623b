"""Deliveries as a person reads them in a terminal. What an alert says is written by others: it cannot steer it."""

import sys
from collections.abc import Collection, Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.relay.channels.wording import one_line, readable
from services.relay.console.written import written
from services.relay.outbox.query import Attempt, Delivery, Record

_WIDE = 1000
"""Columns of a pipe: nothing is cut off or folded there."""
_NARROW: Final = ("id\naccepted", "alertname\nstatus, channel", "state\nattempts: reason")
_WHOLE: Final = {"id", _NARROW[0]}
"""The columns that are never folded: a person copies what stands there."""


def show_all(deliveries: Collection[Delivery]) -> None:
    """Prints a table with a row for each, of two lines where the terminal is too narrow for one."""
    headings = ("id", "accepted", "alertname", "status", "channel", "state", "attempts", "reason")
    table = _table(headings, map(_listed, deliveries))
    console = _console()
    if console.measure(table, options=console.options.update_width(_WIDE)).maximum > console.width:
        table = _table(_NARROW, map(_in_two_lines, deliveries))
    console.print(table)


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
        "event": one.event_id,
        "incident": one.incident_id,
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, _cell(value))
    if one.receipt:
        grid.add_row("receipt", _cell(*(f"{key}={value}" for key, value in one.receipt.items())))
    console = _console()
    console.print(grid)
    if record.tried:
        console.print("", _table(("attempt", "started", "seconds", "reason", "answer"), map(_tried, record.tried)))
    if record.payload is not None:
        console.print("", "payload, credentials masked:", Text(readable(record.payload), overflow="fold"), sep="\n")


def _listed(one: Delivery) -> Iterable[Text]:
    about = (one.id, written(one.accepted_at), one.alertname, one.status)
    return map(_cell, (*about, one.channel, one.state, str(one.attempts), one.reason))


def _in_two_lines(one: Delivery) -> Iterable[Text]:
    tried = f"{one.attempts}: {one.reason}" if one.reason else None
    return (
        _cell(one.id, written(one.accepted_at), ""),
        _cell(one.alertname, f"{one.status}, {one.channel}", ""),
        _cell(one.state, tried, ""),
    )


def _tried(attempt: Attempt) -> Iterable[Text]:
    started = written(attempt.started_at)
    return map(_cell, (str(attempt.number), started, f"{attempt.seconds:.3f}", attempt.reason, attempt.detail))


def _table(headings: Iterable[str], rows: Iterable[Iterable[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in _WHOLE)
    for row in rows:
        table.add_row(*row)
    return table


def _cell(*lines: str | None) -> Text:
    return Text("\n".join(one_line(line or "") for line in lines), overflow="fold")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False, emoji=False)
