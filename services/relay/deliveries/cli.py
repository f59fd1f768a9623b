"""`deliveries`: lists deliveries, or shows one. Text of an alert is cleaned, so that it cannot control the terminal.

`retry`: requeues dead letters, and makes waiting deliveries due at once.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from services.relay.cli import (
    COMMAND_LINE,
    TEXT,
    add_config_option,
    add_list_options,
    check_channel_or_exit,
    describe_account,
    iterate_pages,
    run_with_outbox,
)
from services.relay.config import RelaySettings
from services.relay.deliveries.queries import (
    AttemptRow,
    DeliveryDetails,
    DeliveryFilter,
    DeliverySummary,
    Position,
    encode_delivery,
    encode_details,
    list_deliveries,
    parse_state,
    read_delivery,
)
from services.relay.deliveries.retries import STEP, retry_channel, retry_delivery
from services.relay.outbox.audit import Actor
from services.relay.outbox.dead_letters import DeadLetterFilter
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState
from services.relay.text import clean_line, clean_text
from shared.http.json_api import RefusedError, format_json_time
from shared.process.command_line import ParsedOption, load_settings_or_exit

_PIPE_WIDTH = 1000
"""Columns if the output is a pipe: nothing is cut off or folded."""
_NARROW_HEADINGS: Final = ("id\naccepted", "alertname\nstatus, channel", "state\nattempts: reason")
_UNFOLDED: Final = {"id", _NARROW_HEADINGS[0]}
"""The columns that are never folded, so that their text can be copied."""


def print_deliveries(deliveries: Collection[DeliverySummary]) -> None:
    """Prints a table with a row for each, of two lines where the terminal is too narrow for one."""
    headings = ("id", "accepted", "alertname", "status", "channel", "state", "attempts", "reason")
    table = _build_table(headings, map(_build_row, deliveries))
    console = _open_console()
    if console.measure(table, options=console.options.update_width(_PIPE_WIDTH)).maximum > console.width:
        table = _build_table(_NARROW_HEADINGS, map(_build_narrow_row, deliveries))
    console.print(table)


def print_details(details: DeliveryDetails) -> None:
    delivery = details.delivery
    facts = {
        "id": delivery.id,
        "alertname": delivery.alertname,
        "status": delivery.status,
        "receiver": delivery.receiver,
        "channel": delivery.channel,
        "state": delivery.state,
        "reason": delivery.reason,
        "accepted": format_json_time(delivery.accepted_at),
        "finished": format_json_time(delivery.finished_at),
        "remark": delivery.remark,
        "superseded by": delivery.superseded_by,
        "digest": delivery.digest,
        "supersedes": ", ".join(details.supersedes),
        "event": delivery.event_id,
        "incident": delivery.incident_id,
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, _build_cell(value))
    if delivery.receipt:
        grid.add_row("receipt", _build_cell(*(f"{key}={value}" for key, value in delivery.receipt.items())))
    console = _open_console()
    console.print(grid)
    if details.attempts:
        console.print(
            "",
            _build_table(
                ("attempt", "started", "seconds", "reason", "answer"), map(_build_attempt_row, details.attempts)
            ),
        )
    if details.payload is not None:
        console.print("", "payload, credentials masked:", Text(clean_text(details.payload), overflow="fold"), sep="\n")


def _build_row(delivery: DeliverySummary) -> Iterable[Text]:
    about = (delivery.id, format_json_time(delivery.accepted_at), delivery.alertname, delivery.status)
    return map(_build_cell, (*about, delivery.channel, delivery.state, str(delivery.attempt_count), delivery.reason))


def _build_narrow_row(delivery: DeliverySummary) -> Iterable[Text]:
    attempts = f"{delivery.attempt_count}: {delivery.reason}" if delivery.reason else None
    return (
        _build_cell(delivery.id, format_json_time(delivery.accepted_at), ""),
        _build_cell(delivery.alertname, f"{delivery.status}, {delivery.channel}", ""),
        _build_cell(delivery.state, attempts, ""),
    )


def _build_attempt_row(attempt: AttemptRow) -> Iterable[Text]:
    started = format_json_time(attempt.started_at)
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


_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml deliveries --state dead
  keypulse-relay --config relay.yml deliveries --channel pagerduty --since 1h --json
  keypulse-relay --config relay.yml deliveries 5f0c8e4f1b3f4c1e9a52d1f7f6a3b9d2"""


@click.command("deliveries", short_help="List deliveries, or show one.", epilog=_EXAMPLES)
@click.argument("delivery_id", metavar="[ID]", required=False, type=TEXT)
@click.option("--state", type=ParsedOption(parse_state), help=f"Only those in this state: {', '.join(DeliveryState)}.")
@click.option("--channel", type=TEXT, help="Only those to this channel.")
@click.option("--alertname", type=TEXT, help="Only those of this alertname.")
@click.option("--digest", metavar="ID", type=TEXT, help="Only the deliveries that this digest delivered or named.")
@add_list_options("accepted")
@add_config_option
def deliveries_command(
    config: Path | None, /, delivery_id: str | None, *, limit: int, as_json: bool, **filters: Any
) -> None:
    """List the newest deliveries, or show one with its attempts, its receipt and the payload as sent."""
    settings = load_settings_or_exit(RelaySettings, config)
    chosen = DeliveryFilter(**filters)
    limit_source = click.get_current_context().get_parameter_source("limit")
    if delivery_id is None:
        run_with_outbox(settings, lambda store: _print_list(store, chosen, limit, as_json=as_json), read_only=True)
    elif chosen != DeliveryFilter() or limit_source is ParameterSource.COMMANDLINE:
        click.echo("ID: expected without filters, which are for a list", err=True)
        sys.exit(2)
    elif not run_with_outbox(settings, partial(_print_one, delivery_id, as_json=as_json), read_only=True):
        click.echo(f"{delivery_id}: no such delivery", err=True)
        sys.exit(1)


async def _print_list(store: Store, chosen: DeliveryFilter, limit: int, *, as_json: bool) -> None:
    async def read_page(most: int, before: int | None) -> tuple[Sequence[DeliverySummary], int | None]:
        page = await list_deliveries(store, chosen, limit=most, position=Position(before=before))
        return page.deliveries, page.older

    if as_json:
        async for delivery in iterate_pages(read_page, limit):
            click.echo(json.dumps(encode_delivery(delivery)))
    else:
        print_deliveries([delivery async for delivery in iterate_pages(read_page, limit)])


async def _print_one(delivery_id: str, store: Store, *, as_json: bool) -> bool:
    record = await read_delivery(store, delivery_id)
    if record is None:
        return False
    if as_json:
        click.echo(json.dumps(encode_details(record)))
    else:
        print_details(record)
    return True


_RETRY_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml retry 5f0c8e4f1b3f4c1e9a52d1f7f6a3b9d2
  keypulse-relay --config relay.yml retry --channel slack-critical
  keypulse-relay --config relay.yml retry --all"""


@click.command("retry", short_help="Requeue dead letters.", epilog=_RETRY_EXAMPLES)
@click.argument("ids", metavar="[ID]...", nargs=-1, type=TEXT)
@click.option("--channel", help="All dead letters of this channel.")
@click.option("--all", "all_channels", is_flag=True, help="All dead letters of every configured channel.")
@add_config_option
def retry_command(config: Path | None, ids: tuple[str, ...], channel: str | None, all_channels: bool) -> None:
    """Requeue dead letters: each sends the current state of its incident. A waiting delivery becomes due at once.

    With --channel and --all, a channel that is down is tried at once, too.

    A running relay sends them within seconds; otherwise they are sent at its next start.
    """
    settings = load_settings_or_exit(RelaySettings, config)
    if [bool(ids), channel is not None, all_channels].count(True) != 1:
        click.echo("expected one of: IDs, --channel, --all", err=True)
        sys.exit(2)
    if ids:
        retried, errors = run_with_outbox(settings, lambda store: _retry_deliveries(store, ids, settings))
    else:
        names = [check_channel_or_exit(settings, channel)] if channel is not None else sorted(settings.channels)
        retried, errors = run_with_outbox(settings, lambda store: _retry_channels(store, names)), []
    for error in errors:
        click.echo(error, err=True)
    click.echo(f"{retried} requeued")
    sys.exit(1 if errors else 0)


async def _retry_deliveries(store: Store, ids: Sequence[str], settings: RelaySettings) -> tuple[int, list[str]]:
    """How many are requeued, and a line for each of the others."""
    errors, actor = [], Actor(describe_account(), COMMAND_LINE)
    with _show_progress(len(ids)) as advance:
        for delivery_id in ids:
            try:
                await retry_delivery(store, delivery_id, settings.channels, actor)
            except RefusedError as error:
                errors.append(f"{delivery_id}: {error}")
            advance(1)
    return len(ids) - len(errors), errors


async def _retry_channels(store: Store, names: Sequence[str]) -> int:
    retried, actor = 0, Actor(describe_account(), COMMAND_LINE)
    with _show_progress(sum([await store.read(DeadLetterFilter(name).count) for name in names])) as advance:
        for name in names:
            async for requeued in retry_channel(store, name, None, actor):
                retried += requeued
                advance(requeued)
    return retried


@contextmanager
def _show_progress(total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, if that is a terminal and there is more than one step."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal or total <= STEP) as progress:
        yield partial(progress.advance, progress.add_task("requeued", total=total))
