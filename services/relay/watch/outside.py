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

from services.relay.channels.channel import SendError
from services.relay.channels.web_api import Session, fit_for_a_secret, reached
from services.relay.outbox.store import Store
from services.relay.outbox.watchdogs import drains
from shared.secret_file import SecretFile, SecretUnreadableError

_ANSWER_SECONDS: Final = 5.0
WITHIN: Final = 600.0
LONGEST: Final = 7200.0
"""Seconds, both: see `drains`. They are those of the alert RelayOutboxStuck."""

log = structlog.get_logger(__name__)


class Outside:
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
        self._session = Session("the outside address")
        self._seen = asyncio.Event()

    def heartbeat(self) -> None:
        """One came; those that come while one is passed on are passed on together."""
        self._seen.set()

    async def pass_on(self) -> float:
        """Waits for a heartbeat and passes it on; gives the seconds until the next, 0. Raises StoreUnavailableError."""
        await self._seen.wait()
        self._seen.clear()
        if not await self._store.run(partial(drains, channels=self._channels, within=WITHIN, longest=LONGEST)):
            log.warning(
                "the outside address is not asked while the outbox does not drain; see RelayOutboxStuck in the runbook",
                watchdog=self._watchdog,
            )
            return 0.0
        problem = await self._ask()
        if problem is not None:
            log.warning(
                "the outside address could not be asked; the next heartbeat tries again",
                watchdog=self._watchdog,
                problem=problem,
            )
        return 0.0

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _ask(self) -> str | None:
        """Why it could not be asked, in words that do not show it; None where it answered."""
        try:
            url = fit_for_a_secret(self._url.value())
            with reached("the outside address"):
                async with asyncio.timeout(_ANSWER_SECONDS), self._session.get().get(url) as answer:
                    if answer.status >= 300:
                        return f"it answered HTTP {answer.status}"
        except TimeoutError:
            return f"no answer within {_ANSWER_SECONDS:g} s"
        except ValueError as error:
            return f"{self._url.path}: {error}"
        except (SecretUnreadableError, SendError) as error:
            return str(error)
        return None
