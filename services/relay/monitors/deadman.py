"""A dead man's switch: each heartbeat of a watchdog pings a URL outside of this system, while the outbox drains.

The service behind the URL alerts when the pings stop: when Prometheus, Alertmanager or the relay is down, or the relay
delivers nothing. The URL is a secret, for anybody who has it can keep the switch quiet.
"""

import asyncio
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.outbox.engine.store import Store
from services.relay.outbox.overview.draining import is_draining
from services.relay.send_error import SendError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.url import check_secret_url
from shared.net.egress import EgressSettings

_REPLY_TIMEOUT: Final = 5.0
DRAIN_WINDOW: Final = 600.0
MAX_WAITING_AGE: Final = 7200.0
"""Seconds, both: see `is_draining`. They are those of the alert RelayOutboxStuck."""

log = structlog.get_logger(__name__)


class DeadMansSwitch:
    """The dead man's switch of one watchdog.

    Args:
        watchdog: its name.
        url_file: contains the URL; read again when it changes.
        store: the outbox.
        channels: the configured ones; deliveries of others do not count.
        egress: how the URL is reached.
    """

    def __init__(
        self,
        watchdog: str,
        url_file: Path,
        store: Store,
        channels: Collection[str],
        egress: EgressSettings | None = None,
    ) -> None:
        self._watchdog = watchdog
        self._url = SecretFile(url_file)
        self._store = store
        self._channels = channels
        self._session = HttpSession("the dead man's switch", egress=egress)
        self._heartbeat_received = asyncio.Event()

    def record_heartbeat(self) -> None:
        """A heartbeat came; those that come during a ping cause one further ping."""
        self._heartbeat_received.set()

    async def ping_after_heartbeat(self) -> float:
        """Waits for a heartbeat and pings; gives the seconds until the next wait, 0. Raises StoreUnavailableError."""
        await self._heartbeat_received.wait()
        self._heartbeat_received.clear()
        if not await self._store.run(
            partial(is_draining, channels=self._channels, within=DRAIN_WINDOW, max_age=MAX_WAITING_AGE)
        ):
            log.warning(
                "dead man's switch not pinged: the outbox does not drain",
                watchdog=self._watchdog,
            )
            return 0.0
        error = await self._ping()
        if error is not None:
            log.warning(
                "dead man's switch could not be pinged; retrying at the next heartbeat",
                watchdog=self._watchdog,
                error=error,
            )
        return 0.0

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _ping(self) -> str | None:
        """Why the ping failed, without the URL; None if it did not."""
        try:
            url = check_secret_url(self._url.read_value())
            with translate_connection_errors("the dead man's switch"):
                async with asyncio.timeout(_REPLY_TIMEOUT), self._session.open().get(url) as answer:
                    if answer.status >= 300:
                        return f"it answered HTTP {answer.status}"
        except TimeoutError:
            return f"no answer within {_REPLY_TIMEOUT:g} s"
        except ValueError as error:
            return f"{self._url.path}: {error}"
        except (SecretUnreadableError, SendError) as error:
            return str(error)
        return None
