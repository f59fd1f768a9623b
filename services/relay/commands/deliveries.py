"""`deliveries`: what was delivered, to which channel, and how it went."""

import json
import re
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import click

from services.relay.commands.configured import add_config_option
from services.relay.commands.outbox import run_with_outbox
from services.relay.commands.shown import print_details, print_deliveries
from services.relay.config import RelaySettings
from services.relay.console.written import encode_delivery, parse_time, check_text, parse_state, encode_details
from services.relay.outbox import query
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from shared.cli import load_settings_or_exit, parse_option_or_exit

_DEFAULT_LIMIT: Final = 50
_PAGE_SIZE: Final = 500

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
@click.option("--limit", metavar="NUMBER", help=f"At most so many; {_DEFAULT_LIMIT} where it is not given.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@add_config_option
def command(config: Path | None, /, delivery_id: str | None, *, as_json: bool, **filters: str | None) -> None:
    """Show the newest deliveries, or all that is known of one: its attempts, its receipt, the payload as sent."""
    settings = load_settings_or_exit(RelaySettings, config)
    given = {name: value for name, value in filters.items() if value is not None}
    if delivery_id is None:
        wanted, limit = _parse_filter(given)
        run_with_outbox(settings, lambda store: _print_list(store, wanted, limit, as_json=as_json), read_only=True)
    elif given:
        click.echo("ID: expected alone; the filters are for a list", err=True)
        sys.exit(2)
    elif not run_with_outbox(
        settings, partial(_print_one, parse_option_or_exit("ID", check_text, delivery_id), as_json=as_json), read_only=True
    ):
        click.echo(f"{delivery_id}: no such delivery", err=True)
        sys.exit(1)


def _parse_filter(options: dict[str, str]) -> tuple[query.DeliveryFilter, int]:
    """What was asked for, and how much of it; on a mistake one line on standard error, then exit 2."""
    wanted = query.DeliveryFilter(
        state=parse_option_or_exit("--state", parse_state, options["in_state"]) if "in_state" in options else None,
        channel=parse_option_or_exit("--channel", check_text, options["channel"]) if "channel" in options else None,
        alertname=parse_option_or_exit("--alertname", check_text, options["alertname"]) if "alertname" in options else None,
        since=parse_option_or_exit("--since", parse_time, options["since"]) if "since" in options else None,
    )
    return wanted, parse_option_or_exit("--limit", _parse_limit, options.get("limit", str(_DEFAULT_LIMIT)))


def _parse_limit(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("expected a number from 1 on")
    return int(text)


async def _print_list(store: Store, wanted: query.DeliveryFilter, limit: int, *, as_json: bool) -> None:
    if as_json:
        async for delivery in _iterate_deliveries(store, wanted, limit):
            click.echo(json.dumps(encode_delivery(delivery)))
    else:
        print_deliveries([delivery async for delivery in _iterate_deliveries(store, wanted, limit)])


async def _print_one(delivery_id: str, store: Store, *, as_json: bool) -> bool:
    record = await query.read_delivery(store, delivery_id)
    if record is None:
        return False
    if as_json:
        click.echo(json.dumps(encode_details(record)))
    else:
        print_details(record)
    return True


async def _iterate_deliveries(store: Store, wanted: query.DeliveryFilter, limit: int) -> AsyncIterator[query.DeliveryRow]:
    before = None
    while limit > 0:
        page = await query.list_deliveries(store, wanted, limit=min(limit, _PAGE_SIZE), before=before)
        for delivery in page.deliveries:
            yield delivery
        limit -= len(page.deliveries)
        before = page.before
        if before is None:
            return
