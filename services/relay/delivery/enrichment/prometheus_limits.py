"""How often messages ask Prometheus: seldom in a storm, few at once, and not at all for a while after a failure.

So a Prometheus that hangs delays one message and not each.
"""

import asyncio
from typing import Final

import structlog

_MAX_WAITING: Final = 3
"""Charts that are made or wait at once."""
_BURST: Final = 5
"""Charts that are made one after the other; beyond them one in `_REFILL_SECONDS`."""
_REFILL_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 30.0
"""Seconds after a failure in which nothing is asked."""

log = structlog.get_logger(__name__)


class PrometheusLimits:
    """Decides whether current values and a chart may be asked for, by the event loop's clock."""

    def __init__(self) -> None:
        self._tokens = float(_BURST)
        self._refilled_at = 0.0
        self._paused_until = 0.0

    def admit(self, waiting: int) -> bool:
        """Whether another one may be asked for now, while so many are being made; it takes a token."""
        now = asyncio.get_running_loop().time()
        if now < self._paused_until:
            return False
        self._tokens = min(_BURST, self._tokens + (now - self._refilled_at) / _REFILL_SECONDS)
        self._refilled_at = now
        if self._tokens < 1 or waiting >= _MAX_WAITING:
            return False
        self._tokens -= 1
        return True

    def pause(self, error: str) -> None:
        """After a failure nothing is asked for a while."""
        self._paused_until = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        log.warning("message goes without its chart", error=error, retry_in=_PAUSE_SECONDS)
