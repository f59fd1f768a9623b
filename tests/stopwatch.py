"""How long something took, without what the machine gave to other programs meanwhile."""

import time
from pathlib import Path


class Stopwatch:
    """Counts from its start, in the thread that made it.

    The time in which the thread could run, and other programs had the processor, does not count: the kernel knows it
    (https://docs.kernel.org/scheduler/sched-stats.html). What the thread itself does or waits for counts in full.
    """

    def __init__(self) -> None:
        self._started = self._read()

    @property
    def seconds(self) -> float:
        return self._read() - self._started

    def _read(self) -> float:
        _, waited_for_a_processor, _ = Path("/proc/thread-self/schedstat").read_text().split()
        return time.monotonic() - int(waited_for_a_processor) / 1e9
