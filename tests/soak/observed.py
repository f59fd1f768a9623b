"""`python -m tests.soak.observed FOLDER SERVER CONFIG`: a server that counts its tasks, and whose clock can jump.

At SIGUSR2 it writes what its tasks run into FOLDER/SERVER.tasks. The relay's clock is ahead of the machine's by
the seconds in FOLDER/relay.clock; the others have none that can be passed in.
"""

import asyncio
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

_OWN_POOL: Final = ("asyncio_", "uvloop_")
"""How asyncio and uvloop name the threads of their own pools."""


def run(folder: Path, server: str, config: Path) -> None:
    def count_tasks(_signal: int, _frame: object) -> None:
        with suppress(RuntimeError):  # before its event loop runs
            names = [str(getattr(task.get_coro(), "__qualname__", task.get_name())) for task in asyncio.all_tasks()]
            pool = sum(thread.name.startswith(_OWN_POOL) for thread in threading.enumerate())
            (folder / f"{server}.tasks").write_text("\n".join(names) + f"\n\n{pool}")

    signal.signal(signal.SIGUSR2, count_tasks)
    if server != "relay":
        sys.argv = [server, "--config", str(config)]
        runpy.run_module(f"services.{server}", run_name="__main__", alter_sys=True)
        return
    import uvloop

    from services.relay.app import serve
    from services.relay.config import RelaySettings
    from shared.process.command_line import ServerOptions, run_server

    ahead = folder / "relay.clock"
    options = ServerOptions(
        config=config,
        web_config=None,
        log_level="info",
        log_format="json",
        check=False,
        healthcheck=False,
        print_schema=False,
    )
    serve_at = partial(serve, clock=lambda: time.time() + float(ahead.read_text()))
    run_server(RelaySettings, serve_at, options, uvloop.new_event_loop)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
