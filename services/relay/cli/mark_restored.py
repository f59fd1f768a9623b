"""`mark-restored`: marks the outbox as restored from a backup, if that cannot be detected."""

from pathlib import Path
from typing import Final

import click

from services.relay.cli.command_context import add_config_option, record_action, run_with_outbox
from services.relay.config import RelaySettings
from services.relay.outbox.engine.store import Store
from services.relay.outbox.restore_detection import mark_restored
from shared.process.command_line import load_settings_or_exit

_EXAMPLES: Final = """\b
Example:
  keypulse-relay --config relay.yml mark-restored"""


@click.command("mark-restored", short_help="Mark the outbox as restored from a backup.", epilog=_EXAMPLES)
@add_config_option
def command(config: Path | None) -> None:
    """Mark the outbox as restored from a backup, a snapshot or a replica. Run it before the relay is started.

    Waiting deliveries then count as possibly delivered: they are compared with Alertmanager first, and nobody is paged
    for what is resolved.
    """
    run_with_outbox(load_settings_or_exit(RelaySettings, config), _mark_restored)
    click.echo("marked; the relay will treat waiting deliveries as possibly delivered")


async def _mark_restored(store: Store) -> None:
    await mark_restored(store)
    await record_action(store, "mark-restored", "outbox")
