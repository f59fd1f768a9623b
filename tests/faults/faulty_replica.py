"""`python -m tests.faults.faulty_replica CONFIG CLOCK [STOP]`: a relay with a wrong clock and a process that stops.

Its machine's clock is ahead by the seconds in the file CLOCK; its sending process stops at the file STOP, as
`stopping_channel` says.
"""

import sys
import time
from pathlib import Path

from services.relay.app import run_relay
from services.relay.channels.pagerduty import PagerDutySettings
from services.relay.channels.port import ChannelSettings
from services.relay.config import RelaySettings
from shared.process import logs
from shared.process.command_line import load_settings_or_exit, run_until_done_or_exit
from shared.process.server import run_until_stop_signal, serve_until_stopped
from tests.faults.stopping_channel import Stopping


async def serve(settings: RelaySettings, ahead: Path, *stop: Path) -> None:
    channels = {name: _stopping(channel, *stop) for name, channel in settings.channels.items()}
    faulty = settings.model_copy(update={"channels": channels})
    async with run_relay(faulty, clock=lambda: time.time() + float(ahead.read_text())) as app:
        await serve_until_stopped(app, settings.listen, app.state.stop)


def _stopping(channel: ChannelSettings, *stop: Path) -> ChannelSettings:
    if not (stop and isinstance(channel, PagerDutySettings)):
        return channel
    return Stopping.model_construct(**dict(channel), at=stop[0])


if __name__ == "__main__":
    logs.configure("relay")
    config, *files = map(Path, sys.argv[1:])
    run_until_done_or_exit(run_until_stop_signal(serve(load_settings_or_exit(RelaySettings, config), *files)))
