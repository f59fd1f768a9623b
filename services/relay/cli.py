"""What the commands share: `--config`, the outbox beside a running relay, its audit, and a channel's name.

And `mark-restored`: marks the outbox as restored from a backup, if that cannot be detected.
"""

import asyncio
import os
import pwd
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from services.relay.config import RelaySettings
from services.relay.deliveries.queries import check_text, parse_since
from services.relay.outbox import database as dialect
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.recovery import mark_restored
from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, open_store
from services.relay.text import clean_line
from shared.http.access import AuditEntry, AuditUnavailableError
from shared.process.command_line import ParsedOption, load_settings_or_exit, parse_option_or_exit

COMMAND_LINE: Final = "command line"
"""Where an action of a command comes from, in the audit."""
Command = Callable[..., Any]


def add_config_option(command: Command) -> Command:
    """Passes the configuration's file to a command as its first argument; `--config` may follow the command."""
    option = click.option(
        "--config",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_replace_config,
        help="The relay's YAML file; it may stand before the command, too.",
    )
    return option(click.pass_obj(command))


def _replace_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.obj = path


T = TypeVar("T")


def run_with_outbox(settings: RelaySettings, work: Callable[[Store], Awaitable[T]], *, read_only: bool = False) -> T:
    """What `work` returns; where the database cannot be used, one sentence on standard error, then exit 1.

    Args:
        settings: with its database.
        work: what to do with it.
        read_only: `work` only reads, and does not wait for a lock.
    """
    if file := _find_missing_file(settings):
        click.echo(f"there is no database {file}; start the relay, or set another `database`", err=True)
        sys.exit(1)
    try:
        return asyncio.run(_use_outbox(settings, work, read_only=read_only))
    except StoreUnusableError as error:
        click.echo(str(error), err=True)
    except StoreUnavailableError as error:
        click.echo(f"the outbox cannot be used now, try again: {error}", err=True)
    sys.exit(1)


def _find_missing_file(settings: RelaySettings) -> Path | None:
    """The file of a database that no relay has made yet; the store would create it."""
    file = Path(str(settings.database.database))
    return file if dialect.is_sqlite(settings.database) and not file.exists() else None


async def _use_outbox(settings: RelaySettings, work: Callable[[Store], Awaitable[T]], *, read_only: bool = False) -> T:
    """Raises StoreUnusableError or StoreUnavailableError."""
    async with open_store(settings.database, time.time, settings.unmerged_channels, read_only=read_only) as store:
        return await work(store)


def describe_account() -> str:
    """The account that runs the command, such as `anna (uid 1000)`: a command has no credential."""
    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:  # as in a container that runs as any number
        return f"uid {uid}"


async def record_action(store: Store, action: str, on: str) -> None:
    """Adds an audit entry with the account that runs the command."""
    entry = AuditEntry(store.clock(), describe_account(), COMMAND_LINE, action, on)
    with suppress(AuditUnavailableError):  # the action stays done; the next one reports the error
        await OutboxAudit(store).add(entry)


def record_where_possible(settings: RelaySettings, action: str, on: str) -> None:
    """Adds an audit entry of an action that needs no outbox; where it cannot be used, a line on standard error."""
    if _find_missing_file(settings):  # so there is no audit yet
        return
    try:
        asyncio.run(_use_outbox(settings, lambda store: record_action(store, action, on)))
    except (StoreUnusableError, StoreUnavailableError) as error:
        click.echo(f"not recorded in the audit: {error}", err=True)


TEXT: Final = ParsedOption(check_text)
_DEFAULT_LIMIT: Final = 50
_PAGE_SIZE: Final = 500


def add_list_options(since: str) -> Callable[[Command], Command]:
    """Adds the options of a command that lists: `--since`, in unix seconds, `--limit` and `--json`.

    Args:
        since: what has to be within that time, such as `accepted`.
    """
    options = (
        click.option(
            "--since",
            type=ParsedOption(lambda text: parse_since(text, time.time()), "time"),
            help=f"Only those {since} within 1h, 7d, …, or since a time with its zone.",
        ),
        click.option(
            "--limit",
            type=ParsedOption(_parse_limit, "number"),
            default=str(_DEFAULT_LIMIT),
            help=f"The maximum number; {_DEFAULT_LIMIT} by default.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line."),
    )
    return lambda command: reduce(lambda added, option: option(added), reversed(options), command)


def _parse_limit(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("expected a number from 1 on")
    return int(text)


async def iterate_pages(
    read_page: Callable[[int, int | None], Awaitable[tuple[Sequence[T], int | None]]], limit: int
) -> AsyncIterator[T]:
    """The first entries of a list, which `read_page` reads: so many, before a number, and then before which."""
    before: int | None = None
    while limit > 0:
        entries, before = await read_page(min(limit, _PAGE_SIZE), before)
        for entry in entries:
            yield entry
        limit -= len(entries)
        if before is None:
            return


def format_table(heading: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """A table with columns as wide as they need; nothing for no rows."""
    lines = [heading, *(tuple(clean_line(str(cell)) for cell in row) for row in rows)]
    if len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    yield ""
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def check_channel_or_exit(settings: RelaySettings, name: str) -> str:
    """The name of a configured channel; where it is none, one line on standard error, then exit 2."""

    def check_channel(given: str) -> str:
        if given not in settings.channels:
            raise ValueError(f"no such channel; expected one of {', '.join(sorted(settings.channels))}")
        return given

    return parse_option_or_exit("--channel", check_channel, name)


_MARK_RESTORED_EXAMPLES: Final = """\b
Example:
  keypulse-relay --config relay.yml mark-restored"""


@click.command("mark-restored", short_help="Mark the outbox as restored from a backup.", epilog=_MARK_RESTORED_EXAMPLES)
@add_config_option
def mark_restored_command(config: Path | None) -> None:
    """Mark the outbox as restored from a backup, a snapshot or a replica. Run it before the relay is started.

    Waiting deliveries then count as possibly delivered: they are compared with Alertmanager first, and nobody is paged
    for what is resolved.
    """

    async def mark(store: Store) -> None:
        await mark_restored(store)
        await record_action(store, "mark-restored", "outbox")

    run_with_outbox(load_settings_or_exit(RelaySettings, config), mark)
    click.echo("marked; the relay will treat waiting deliveries as possibly delivered")
