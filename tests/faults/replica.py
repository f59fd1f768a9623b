"""`python -m tests.faults.replica CONFIG FILE`: the relay on a machine whose clock is ahead by the seconds in FILE."""

import sys
import time
from pathlib import Path

from services.relay.app import running
from services.relay.config import RelaySettings
from shared import logs
from shared.cli import load_or_exit, run_or_exit
from shared.server import serve_until_stopped
from shared.stop import stoppable


async def serve(settings: RelaySettings, ahead: Path) -> None:
    async with running(settings, clock=lambda: time.time() + float(ahead.read_text())) as app:
        await serve_until_stopped(app, settings.listen, app.state.stop)


if __name__ == "__main__":
    logs.configure("relay")
    run_or_exit(stoppable(serve(load_or_exit(RelaySettings, Path(sys.argv[1])), Path(sys.argv[2]))))
