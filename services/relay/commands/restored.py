"""`restored`: says that the outbox is a backup, where that cannot be seen of it."""

from pathlib import Path
from typing import Final

import click

from services.relay.commands.configured import configured
from services.relay.commands.outbox import record, with_outbox
from services.relay.config import RelaySettings
from services.relay.outbox.restored import say_restored
from services.relay.outbox.store import Store
from shared.cli import load_or_exit

_EXAMPLES: Final = """\b
Example:
  keypulse-relay --config relay.yml restored"""


@click.command("restored", short_help="Say that the outbox was restored.", epilog=_EXAMPLES)
@configured
def command(config: Path | None) -> None:
    """Say that the outbox was restored from a backup, a snapshot or a replica, before the relay is started.

    What waits in it then counts as perhaps told: it is compared with Alertmanager first, and nobody is paged for what
    is over.
    """
    with_outbox(load_or_exit(RelaySettings, config), _say)
    click.echo("what waits counts as perhaps told, from the relay's next look on")


async def _say(store: Store) -> None:
    await say_restored(store)
    await record(store, "restored", "outbox")
