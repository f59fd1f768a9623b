"""`restored`: says that the outbox is a backup, where that cannot be seen of it."""

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
  keypulse-relay --config relay.yml restored"""


@click.command("restored", short_help="Say that the outbox was restored.", epilog=_EXAMPLES)
@add_config_option
def command(config: Path | None) -> None:
    """Say that the outbox was restored from a backup, a snapshot or a replica, before the relay is started.

    What waits in it then counts as perhaps told: it is compared with Alertmanager first, and nobody is paged for what
    is over.
    """
    run_with_outbox(load_settings_or_exit(RelaySettings, config), _mark_restored)
    click.echo("what waits counts as perhaps told, from the relay's next look on")


async def _mark_restored(store: Store) -> None:
    await mark_restored(store)
    await record_action(store, "restored", "outbox")
