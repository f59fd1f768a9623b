"""Each heartbeat is passed on to an address outside of this house, such as a dead man's switch, while all is well.

All is well while the outbox drains: the outside alarms when Prometheus, Alertmanager, the relay, or what lies behind
the relay stops. The address is a secret, for whoever knows it can keep the switch quiet.
"""

import asyncio
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.relay.http_client import HttpSession, translate_connection_errors
from services.relay.outbox.engine.store import Store
from services.relay.outbox.watchdogs import is_draining
from services.relay.send_error import SendError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.url import check_secret_url

_REPLY_TIMEOUT: Final = 5.0
DRAIN_WINDOW: Final = 600.0
MAX_WAITING_AGE: Final = 7200.0
"""Seconds, both: see `is_draining`. They are those of the alert RelayOutboxStuck."""

log = structlog.get_logger(__name__)


class DeadMansSwitch:
    """The outside address of one watchdog.

    Args:
        watchdog: its name.
        url_file: holds the address; read again when it changes.
        store: the outbox.
        channels: those that exist; what waits for another one is waited for by nobody.
    """

    def __init__(self, watchdog: str, url_file: Path, store: Store, channels: Collection[str]) -> None:
        self._watchdog = watchdog
        self._url = SecretFile(url_file)
        self._store = store
        self._channels = channels
        self._session = HttpSession("the outside address")
        self._heartbeat_received = asyncio.Event()

    def record_heartbeat(self) -> None:
        """One came; those that come while one is passed on are passed on together."""
        self._heartbeat_received.set()

    async def ping_after_heartbeat(self) -> float:
        """Waits for a heartbeat and passes it on; gives the seconds until the next, 0. Raises StoreUnavailableError."""
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
        problem = await self._ping()
        if problem is not None:
            log.warning(
                "dead man's switch could not be pinged; retrying at the next heartbeat",
                watchdog=self._watchdog,
                error=problem,
            )
        return 0.0

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _ping(self) -> str | None:
        """Why it could not be asked, in words that do not show it; None where it answered."""
        try:
            url = check_secret_url(self._url.read_value())
            with translate_connection_errors("the outside address"):
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
