"""`deliveries`: what was delivered, to which channel, and how it went."""

import json
import re
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import click

from services.relay.commands.configured import configured
from services.relay.commands.outbox import with_outbox
from services.relay.commands.shown import show, show_all
from services.relay.config import RelaySettings
from services.relay.console.written import document, moment, searchable, state, whole_document
from services.relay.outbox import query
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from shared.cli import load_or_exit, option_or_exit

_LIMIT: Final = 50
_PAGE: Final = 500

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml deliveries --state dead
  keypulse-relay --config relay.yml deliveries --channel pagerduty --since 2026-11-24T22:00:00Z --json
  keypulse-relay --config relay.yml deliveries 5f0c8e4f1b3f4c1e9a52d1f7f6a3b9d2"""


@click.command("deliveries", short_help="Show what was delivered, and how it went.", epilog=_EXAMPLES)
@click.argument("delivery_id", metavar="[ID]", required=False)
@click.option("--state", "in_state", help=f"Only those in this state: {', '.join(State)}.")
@click.option("--channel", help="Only those to this channel.")
@click.option("--alertname", help="Only those of this alert.")
@click.option("--since", metavar="TIME", help="Only those accepted since, such as 2026-11-24T22:46:10Z.")
@click.option("--limit", metavar="NUMBER", help=f"At most so many; {_LIMIT} where it is not given.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@configured
def command(config: Path | None, /, delivery_id: str | None, *, as_json: bool, **filters: str | None) -> None:
    """Show the newest deliveries, or all that is known of one: its attempts, its receipt, the payload as sent."""
    settings = load_or_exit(RelaySettings, config)
    given = {name: value for name, value in filters.items() if value is not None}
    if delivery_id is None:
        wanted, limit = _wanted(given)
        with_outbox(settings, lambda store: _list(store, wanted, limit, as_json=as_json), to_read=True)
    elif given:
        click.echo("ID: expected alone; the filters are for a list", err=True)
        sys.exit(2)
    elif not with_outbox(
        settings, partial(_one, option_or_exit("ID", searchable, delivery_id), as_json=as_json), to_read=True
    ):
        click.echo(f"{delivery_id}: no such delivery", err=True)
        sys.exit(1)


def _wanted(given: dict[str, str]) -> tuple[query.Filter, int]:
    """What was asked for, and how much of it; on a mistake one line on standard error, then exit 2."""
    wanted = query.Filter(
        state=option_or_exit("--state", state, given["in_state"]) if "in_state" in given else None,
        channel=option_or_exit("--channel", searchable, given["channel"]) if "channel" in given else None,
        alertname=option_or_exit("--alertname", searchable, given["alertname"]) if "alertname" in given else None,
        since=option_or_exit("--since", moment, given["since"]) if "since" in given else None,
    )
    return wanted, option_or_exit("--limit", _number, given.get("limit", str(_LIMIT)))


def _number(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("expected a number from 1 on")
    return int(text)


async def _list(store: Store, wanted: query.Filter, limit: int, *, as_json: bool) -> None:
    if as_json:
        async for delivery in _recent(store, wanted, limit):
            click.echo(json.dumps(document(delivery)))
    else:
        show_all([delivery async for delivery in _recent(store, wanted, limit)])


async def _one(delivery_id: str, store: Store, *, as_json: bool) -> bool:
    record = await query.one(store, delivery_id)
    if record is None:
        return False
    if as_json:
        click.echo(json.dumps(whole_document(record)))
    else:
        show(record)
    return True


async def _recent(store: Store, wanted: query.Filter, limit: int) -> AsyncIterator[query.Delivery]:
    before = None
    while limit > 0:
        page = await query.recent(store, wanted, limit=min(limit, _PAGE), before=before)
        for delivery in page.deliveries:
            yield delivery
        limit -= len(page.deliveries)
        before = page.before
        if before is None:
            return
