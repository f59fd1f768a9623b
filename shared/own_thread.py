"""What may hang for ever, a disk or a name server, done in a thread that holds up nobody.

The event loop's own few threads serve everybody, and the end of the process waits for them; one of these ends with it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start_in_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """Begins `work` in a thread of that name; what it gives or raises comes to whoever waits."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # running, so that a wait that ends early leaves it to the thread

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  whatever it is, whoever waits is told
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
