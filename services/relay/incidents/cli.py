"""`incidents` lists incidents; `acknowledge` and `unacknowledge` say who takes care of one.

Text of an alert is cleaned, so that it cannot control the terminal.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from services.relay.acknowledgement.store import Acknowledgement, acknowledge, unacknowledge
from services.relay.cli import (
    COMMAND_LINE,
    TEXT,
    add_config_option,
    add_list_options,
    describe_account,
    iterate_pages,
    run_with_outbox,
)
from services.relay.config import RelaySettings
from services.relay.incidents.queries import (
    IncidentFilter,
    IncidentSummary,
    encode_incident,
    find_incident_id,
    list_incidents,
    parse_status,
)
from services.relay.outbox.store import Store
from services.relay.text import clean_line
from shared.http.json_api import RefusedError, format_json_time
from shared.process.command_line import ParsedOption, load_settings_or_exit

_LIST_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml incidents --status firing
  keypulse-relay --config relay.yml incidents --alertname KMSProbeFailing --since 7d --json"""
_EXAMPLES: Final = """\b
Example:
  keypulse-relay --config relay.yml {0} 4f0c8e4f
The beginning of an id is enough where no other incident's begins so."""


@click.command("incidents", short_help="List incidents.", epilog=_LIST_EXAMPLES)
@click.option("--status", type=ParsedOption(parse_status), help="Only those that are firing, or resolved.")
@click.option("--alertname", type=TEXT, help="Only those of this alertname.")
@add_list_options("that began")
@add_config_option
def command(config: Path | None, /, *, limit: int, as_json: bool, **filters: Any) -> None:
    """List incidents: the open ones, the worst first, then the others, the newest first."""
    settings = load_settings_or_exit(RelaySettings, config)
    chosen = IncidentFilter(**filters)
    run_with_outbox(settings, lambda store: _print(store, chosen, limit, as_json=as_json), read_only=True)


async def _print(store: Store, chosen: IncidentFilter, limit: int, *, as_json: bool) -> None:
    async def read_page(most: int, before: int | None) -> tuple[Sequence[IncidentSummary], int | None]:
        page = await list_incidents(store, chosen, limit=most, before=before)
        return page.incidents, page.before

    async for incident in iterate_pages(read_page, limit):
        click.echo(json.dumps(encode_incident(incident)) if as_json else "\n  ".join(_format(incident)))


def _format(incident: IncidentSummary) -> Iterator[str]:
    """The lines of an incident, its id first."""
    yield incident.id
    since = f"since {format_json_time(incident.since)}" if incident.since else ""
    facts = [incident.status.value, incident.severity, since]
    yield f"{', '.join(filter(None, facts))}: {clean_line(incident.title or incident.alertname)}"
    if incident.acknowledged_by:
        yield f"acknowledged by {clean_line(incident.acknowledged_by)}, {format_json_time(incident.acknowledged_at)}"
    if incident.escalated_to:
        yield f"escalated to {', '.join(incident.escalated_to)}, {format_json_time(incident.escalated_at)}"
    yield f"channels: {', '.join(incident.channels)}"


@click.command("acknowledge", short_help="Acknowledge an incident.", epilog=_EXAMPLES.format("acknowledge"))
@click.argument("incident_id", metavar="ID", type=TEXT)
@add_config_option
def acknowledge_command(config: Path | None, incident_id: str) -> None:
    """Say that you take care of an incident: mentions, broadcasts and escalation end, deliveries do not.

    A running relay acknowledges it in PagerDuty within seconds.
    """
    settings = load_settings_or_exit(RelaySettings, config)
    done = _act(
        settings,
        incident_id,
        lambda store, found: acknowledge(
            store,
            found,
            who=describe_account(),
            via=COMMAND_LINE,
            acknowledging_channels=settings.acknowledging_channels,
        ),
    )
    verb = "acknowledged" if done.is_changed else "it was acknowledged before,"
    click.echo(f"{verb} by {clean_line(done.by or '')}")


@click.command("unacknowledge", short_help="Withdraw an acknowledgement.", epilog=_EXAMPLES.format("unacknowledge"))
@click.argument("incident_id", metavar="ID", type=TEXT)
@add_config_option
def unacknowledge_command(config: Path | None, incident_id: str) -> None:
    """Withdraw the acknowledgement of an incident; its escalation starts again. PagerDuty has no such event."""
    settings = load_settings_or_exit(RelaySettings, config)
    done = _act(settings, incident_id, partial(unacknowledge, who=describe_account(), via=COMMAND_LINE))
    click.echo("withdrawn" if done.is_changed else "nobody had acknowledged it")


def _act(
    settings: RelaySettings, given: str, action: Callable[[Store, str], Awaitable[Acknowledgement]]
) -> Acknowledgement:
    """What an action gives for the incident; where it cannot be done, one line on standard error, then exit 1."""

    async def act(store: Store) -> Acknowledgement:
        return await action(store, await find_incident_id(store, given))

    try:
        return run_with_outbox(settings, act)
    except RefusedError as error:
        click.echo(f"{given}: {error}", err=True)
        sys.exit(1)
