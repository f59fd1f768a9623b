"""`retry`: requeues dead letters, and makes waiting deliveries due at once."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import Progress

from services.relay.cli.command_context import (
    COMMAND_LINE,
    add_config_option,
    check_channel_or_exit,
    describe_account,
    record_action,
    run_with_outbox,
)
from services.relay.config import RelaySettings
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import Actor
from services.relay.outbox.operators.dead_letters import DeadLetterFilter
from services.relay.outbox.operators.requeue import BULK_STEP, retry_channel
from services.relay.outbox.operators.retry import NotRetryableError, UnknownDeliveryError, retry_delivery
from services.relay.outbox.queries.delivery_list import check_text
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml retry 5f0c8e4f1b3f4c1e9a52d1f7f6a3b9d2
  keypulse-relay --config relay.yml retry --channel slack-critical
  keypulse-relay --config relay.yml retry --all"""


@click.command("retry", short_help="Requeue dead letters.", epilog=_EXAMPLES)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--channel", help="All dead letters of this channel.")
@click.option("--all", "all_channels", is_flag=True, help="All dead letters of every configured channel.")
@add_config_option
def command(config: Path | None, ids: tuple[str, ...], channel: str | None, all_channels: bool) -> None:
    """Requeue dead letters: each sends the current state of its incident. A waiting delivery becomes due at once.

    With --channel and --all, a channel that is down is tried at once, too.

    A running relay sends them within seconds; otherwise they are sent at its next start.
    """
    settings = load_settings_or_exit(RelaySettings, config)
    if [bool(ids), channel is not None, all_channels].count(True) != 1:
        click.echo("expected one of: IDs, --channel, --all", err=True)
        sys.exit(2)
    for delivery_id in ids:
        parse_option_or_exit("ID", check_text, delivery_id)
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
            except (UnknownDeliveryError, NotRetryableError) as error:
                errors.append(f"{delivery_id}: {error}")
            advance(1)
    return len(ids) - len(errors), errors


async def _retry_channels(store: Store, names: Sequence[str]) -> int:
    retried = 0
    with _show_progress(sum([await store.read(DeadLetterFilter(name).count) for name in names])) as advance:
        for name in names:
            await record_action(store, "retry all", name)
            async for requeued in retry_channel(store, name):
                retried += requeued
                advance(requeued)
    return retried


@contextmanager
def _show_progress(total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, if that is a terminal and there is more than one step."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal or total <= BULK_STEP) as progress:
        yield partial(progress.advance, progress.add_task("requeued", total=total))
