"""How long something took, without what the machine gave to other programs meanwhile."""

import time
from pathlib import Path


class Stopwatch:
    """Counts from its start.

    The time in which a thread of this process could run, and others had the processor, does not count: the kernel
    knows it (https://docs.kernel.org/scheduler/sched-stats.html). What the threads do or wait for counts in full.
    """

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._waited = _read_waits()

    @property
    def seconds(self) -> float:
        waited = sum(seconds - self._waited.get(thread, 0.0) for thread, seconds in _read_waits().items())
        return time.monotonic() - self._started_at - waited


def _read_waits() -> dict[str, float]:
    """The seconds that each thread has waited for a processor."""
    waits = {}
    for thread in Path("/proc/self/task").iterdir():
        try:
            _, nanoseconds, _ = (thread / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        waits[thread.name] = int(nanoseconds) / 1e9
    return waits
