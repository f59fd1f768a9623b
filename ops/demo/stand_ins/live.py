"""Tells those who look that something has changed: a number that rises, and a way to wait for it to rise."""

import asyncio


class Changes:
    """Counts what has happened to the stand-ins; every room that stores something calls `happened`."""

    def __init__(self) -> None:
        self.version = 0
        self.stopped = False
        self._next = asyncio.Event()

    def happened(self) -> None:
        """One more change: wakes everybody who waits."""
        self.version += 1
        self._wake()

    def stop(self) -> None:
        """The server ends: wakes everybody, so that no open page holds it up."""
        self.stopped = True
        self._wake()

    async def after(self, version: int, seconds: float) -> int:
        """The version as soon as it differs from `version`, or the same one after `seconds` or at the stop."""
        if self.version == version and not self.stopped:
            try:
                async with asyncio.timeout(seconds):
                    await self._next.wait()
            except TimeoutError:
                pass  # nothing happened: the caller gets the version that it has
        return self.version

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()
