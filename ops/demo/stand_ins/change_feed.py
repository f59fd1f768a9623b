"""A counter of changes that a page can wait for."""

import asyncio


class ChangeFeed:
    """Counts the changes of the stand-ins; every module that stores something reports them."""

    def __init__(self) -> None:
        self.version = 0
        self.is_stopped = False
        self._changed = asyncio.Event()

    def publish(self) -> None:
        """Count a change, and wake all waiters."""
        self.version += 1
        self._wake_waiters()

    def stop(self) -> None:
        """Wake all waiters, so that no open page delays the stop of the server."""
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
