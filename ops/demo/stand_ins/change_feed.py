"""Tells those who look that something has changed: a number that rises, and a way to wait for it to rise."""

import asyncio


class ChangeFeed:
    """Counts what has happened to the stand-ins; every room that stores something calls `happened`."""

    def __init__(self) -> None:
        self.version = 0
        self.is_stopped = False
        self._changed = asyncio.Event()

    def publish(self) -> None:
        """One more change: wakes everybody who waits."""
        self.version += 1
        self._wake_waiters()

    def stop(self) -> None:
        """The server ends: wakes everybody, so that no open page holds it up."""
        self.is_stopped = True
        self._wake_waiters()

    async def wait_for_change(self, version: int, seconds: float) -> int:
        """The version as soon as it differs from `version`, or the same one after `seconds` or at the stop."""
        if self.version == version and not self.is_stopped:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass  # nothing happened: the caller gets the version that it has
        return self.version

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
