"""`proofs`: how far each channel is proven, and what the last proofs took."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from services.relay.cli import add_config_option, format_table, run_with_outbox
from services.relay.config import RelaySettings
from services.relay.outbox.store import Store
from services.relay.proofs.queries import OFF, encode_proofs, read_proofs, read_standings
from services.relay.text import format_seconds
from shared.process.command_line import load_settings_or_exit
from shared.web.time_format import format_step_duration

_LIMIT: Final = 10
_OK: Final = {True: "yes", False: "no", None: "not known yet"}
_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml proofs
  keypulse-relay --config relay.yml proofs --json"""


@click.command("proofs", short_help="Show how far each channel is proven.", epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@add_config_option
def command(config: Path | None, *, as_json: bool) -> None:
    """Show how far each channel is proven, where its last proof was lost, and what the last proofs took."""
    settings = load_settings_or_exit(RelaySettings, config)
    found = run_with_outbox(settings, partial(_read, settings=settings), read_only=True)
    for line in [json.dumps(found)] if as_json else _list_lines(found, settings.proof.every):
        click.echo(line)


async def _read(store: Store, settings: RelaySettings) -> dict[str, Any]:
    now, every = store.clock(), settings.proof.every
    names = [name for name in settings.channels if name in settings.proven_channels]
    standings = await store.read(partial(read_standings, names=names, now=now, every=every))
    return encode_proofs(standings, await store.read(partial(read_proofs, limit=_LIMIT)), now, every)


def _list_lines(found: dict[str, Any], every: float) -> Iterator[str]:
    if not every:
        yield OFF
    yield from format_table(
        ("channel", "proven", "level", "age", "lost at", "error"),
        [
            (
                *(each["channel"], _OK[each["ok"]], each["level"] or "-"),
                format_seconds(each["age_seconds"] and round(each["age_seconds"])),
                *(each["hop"] or "-", each["error"] or "-"),
            )
            for each in found["channels"]
        ],
    )
    yield from format_table(
        ("started", "service", "env", *(found["proofs"][0]["hops"] if found["proofs"] else ()), "channels"),
        [
            (
                *(proof["started"], proof["service"] or "-", proof["env"] or "-"),
                *("-" if at is None else format_step_duration(at) for at in proof["hops"].values()),
                f"{sum(each['level'] is not None for each in proof['channels'])} of {len(proof['channels'])}",
            )
            for proof in found["proofs"]
        ],
    )
