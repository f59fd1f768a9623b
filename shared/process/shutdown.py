"""Graceful stop at SIGTERM and SIGINT, within `STOP_SECONDS` whatever hangs."""

import asyncio
import faulthandler
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Final

STOP_SECONDS: Final = 14.0
"""From the signal to the end of the process, at most."""
_STANDARD_ERROR: Final = 2
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def wait_for_stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    _on_stop_signals(stopped.set)
    await stopped.wait()


async def run_until_stop_signal(server: Awaitable[None]) -> None:
    """Run `server`; a signal also cancels it while it has not yet called `wait_for_stop_signal`."""
    starting = asyncio.ensure_future(server)
    _on_stop_signals(starting.cancel)
    with suppress(asyncio.CancelledError):
        await starting


def _on_stop_signals(callback: Callable[[], object]) -> None:
    """Call `callback` on the running loop at each signal; a second signal must not shorten the stop.

    The handlers are Python's and not the loop's: the loop may be what hangs.
    """
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        _start_kill_timer()
        with suppress(RuntimeError):  # the loop is closed: the process ends anyway
            loop.call_soon_threadsafe(callback)

    for number in _SIGNALS:
        signal.signal(number, handle)


def _start_kill_timer() -> None:
    """End the process `STOP_SECONDS` after the first signal, whatever hangs.

    A thread of faulthandler, which needs neither the loop nor the GIL, writes the stack of each thread and exits with
    1. If nobody reads standard error it would block for ever; then SIGALRM ends the process.
    """
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)
        faulthandler.dump_traceback_later(STOP_SECONDS - 1, exit=True, file=_STANDARD_ERROR)
