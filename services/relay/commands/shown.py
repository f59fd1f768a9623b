"""Deliveries as a person reads them in a terminal. What an alert says is written by others: it cannot steer it."""

import sys
from collections.abc import Collection, Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.relay.channels.wording import clean_line, clean_text
from services.relay.console.written import format_time
from services.relay.outbox.query import AttemptRow, DeliveryRow, DeliveryDetails

_PIPE_WIDTH = 1000
"""Columns of a pipe: nothing is cut off or folded there."""
_NARROW_HEADINGS: Final = ("id\naccepted", "alertname\nstatus, channel", "state\nattempts: reason")
_UNFOLDED: Final = {"id", _NARROW_HEADINGS[0]}
"""The columns that are never folded: a person copies what stands there."""


def print_deliveries(deliveries: Collection[DeliveryRow]) -> None:
    """Prints a table with a row for each, of two lines where the terminal is too narrow for one."""
    headings = ("id", "accepted", "alertname", "status", "channel", "state", "attempts", "reason")
    table = _build_table(headings, map(_build_row, deliveries))
    console = _open_console()
    if console.measure(table, options=console.options.update_width(_PIPE_WIDTH)).maximum > console.width:
        table = _build_table(_NARROW_HEADINGS, map(_build_narrow_row, deliveries))
    console.print(table)


def print_details(details: DeliveryDetails) -> None:
    """Prints all that is known of one."""
    one = details.delivery
    facts = {
        "id": one.id,
        "alertname": one.alertname,
        "status": one.status,
        "receiver": one.receiver,
        "channel": one.channel,
        "state": one.state,
        "reason": one.reason,
        "accepted": format_time(one.accepted_at),
        "finished": format_time(one.finished_at),
        "note": one.remark,
        "superseded by": one.superseded_by,
        "tells of": ", ".join(details.supersedes),
        "event": one.event_id,
        "incident": one.incident_id,
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, _build_cell(value))
    if one.receipt:
        grid.add_row("receipt", _build_cell(*(f"{key}={value}" for key, value in one.receipt.items())))
    console = _open_console()
    console.print(grid)
    if details.attempts:
        console.print("", _build_table(("attempt", "started", "seconds", "reason", "answer"), map(_build_attempt_row, details.attempts)))
    if details.payload is not None:
        console.print("", "payload, credentials masked:", Text(clean_text(details.payload), overflow="fold"), sep="\n")


def _build_row(delivery: DeliveryRow) -> Iterable[Text]:
    about = (delivery.id, format_time(delivery.accepted_at), delivery.alertname, delivery.status)
    return map(_build_cell, (*about, delivery.channel, delivery.state, str(delivery.attempt_count), delivery.reason))


def _build_narrow_row(delivery: DeliveryRow) -> Iterable[Text]:
    tried = f"{delivery.attempt_count}: {delivery.reason}" if delivery.reason else None
    return (
        _build_cell(delivery.id, format_time(delivery.accepted_at), ""),
        _build_cell(delivery.alertname, f"{delivery.status}, {delivery.channel}", ""),
        _build_cell(delivery.state, tried, ""),
    )


def _build_attempt_row(attempt: AttemptRow) -> Iterable[Text]:
    started = format_time(attempt.started_at)
    return map(_build_cell, (str(attempt.number), started, f"{attempt.seconds:.3f}", attempt.reason, attempt.detail))


def _build_table(headings: Iterable[str], rows: Iterable[Iterable[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in _UNFOLDED)
    for row in rows:
        table.add_row(*row)
    return table


def _build_cell(*lines: str | None) -> Text:
    return Text("\n".join(clean_line(line or "") for line in lines), overflow="fold")


def _open_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False, emoji=False)
