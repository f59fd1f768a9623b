"""Publishes an alert when a watchdog is absent: then Prometheus or Alertmanager may be down, and no other alert comes.

The alert is an incident of the relay's own, on the watchdog's channels; the next heartbeat resolves it. Each heartbeat
also pings a dead man's switch outside of this system, while the outbox drains. The service behind it alerts when the
pings stop: when Prometheus, Alertmanager or the relay is down, or the relay delivers nothing. Its URL is a secret, for
anybody who has it can keep the switch quiet.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy import bindparam, func, literal_column, select

from services.relay.channels.port import SendError
from services.relay.http import HttpSession, translate_connection_errors
from services.relay.intake.routing import WatchdogSettings
from services.relay.monitors.self_alerts import AlertPublisher, SelfAlert, resolve_removed
from services.relay.outbox.heartbeats import count_silence
from services.relay.outbox.incidents import read_open_incident
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import deliveries
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import check_secret_url
from shared.net.egress import EgressSettings
from shared.sql.rows import RowQuery, select_values

_CHECK_INTERVAL: Final = 5.0
"""The longest time between two checks: another replica may have received the heartbeat."""
_IDLE_INTERVAL: Final = 3600.0
_GROUP_PREFIX: Final = "watchdog/"
_RESOLVED_REMARK: Final = "The heartbeats are back."
_REMOVED_REMARK: Final = "This watchdog is no longer configured."

log = structlog.get_logger(__name__)


def build_absence(watchdog: WatchdogSettings) -> SelfAlert:
    """The incident of a watchdog's absence."""
    name = watchdog.name
    return SelfAlert(
        group=f"{_GROUP_PREFIX}{name}",
        labels={"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": name},
        title=f"Prometheus or Alertmanager is silent: no heartbeat of {name} for {watchdog.expect_every:g} s",
        summary="No other alert will arrive either",
        description=(
            "Prometheus, Alertmanager or the connection between them and the relay is broken. Check that "
            f"Prometheus runs and {name} fires on its page of alerts, that Alertmanager lists it and routes "
            "it to the relay at least as often as `expect_every`, and that Alertmanager's log shows no failed "
            "notifications."
        ),
    )


class IntakeUptime:
    """How long heartbeats could be stored since the last check; only in that time can a watchdog be absent.

    A wall clock does not show that: one that jumps ahead, as after a machine was suspended, is no absence.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._started_at = monotonic()

    def restart(self) -> float:
        """Measures from now on; gives what it was until now."""
        before, self._started_at = self._started_at, self._monotonic()
        return self._started_at - before


class WatchdogMonitor:
    """Publishes which watchdogs are absent, and which are back."""

    def __init__(self, publisher: AlertPublisher, watchdogs: Sequence[WatchdogSettings], uptime: IntakeUptime) -> None:
        self._publisher = publisher
        self._watchdogs = watchdogs
        self._uptime = uptime
        self._uptime.restart()
        self._removed_resolved = False

    async def check(self) -> float:
        """Checks once; gives the seconds until the next check. Raises StoreUnavailableError."""
        try:
            return await self._check()
        except StoreUnavailableError:
            self._uptime.restart()  # no heartbeat could be stored
            raise

    async def _check(self) -> float:
        store, names = self._publisher.store, [watchdog.name for watchdog in self._watchdogs]
        if not self._removed_resolved:
            groups = {f"{_GROUP_PREFIX}{name}" for name in names}
            await resolve_removed(self._publisher, _GROUP_PREFIX, groups, _REMOVED_REMARK)
            self._removed_resolved = True
        if not names:
            return _IDLE_INTERVAL
        expected = {watchdog.name: watchdog.expect_every for watchdog in self._watchdogs}
        uptime = self._uptime.restart()
        silences = await store.run(lambda transaction: count_silence(transaction, expected, uptime))
        pause = _CHECK_INTERVAL
        for watchdog in self._watchdogs:
            absent = build_absence(watchdog)
            incident = await store.read(partial(read_open_incident, incident_id=absent.incident_id))
            silent, since_heartbeat = silences[watchdog.name]
            if silent >= watchdog.expect_every:
                if incident is None and await self._publisher.fire(absent, watchdog.channels):
                    log.error("watchdog is absent", watchdog=watchdog.name, expect_every=watchdog.expect_every)
            else:
                pause = min(pause, watchdog.expect_every - silent)
                is_back = since_heartbeat < watchdog.expect_every
                if incident is not None and is_back and await self._publisher.resolve(incident, _RESOLVED_REMARK):
                    log.info("watchdog is back after an absence", watchdog=watchdog.name)
        return pause


class _OldestRow(NamedTuple):
    channel: str
    accepted_at: float


_delivery = deliveries.c
_FIND_DELIVERED: Final = (
    select_values(int, _delivery.seq)
    .where(
        # As the index `deliveries_delivered` has it: there may be a hundred thousand of them.
        _delivery.state == literal_column("'delivered'"),
        _delivery.channel == bindparam("on"),
        _delivery.finished_at >= bindparam("since"),
    )
    .limit(1)
)
_OLDEST_WAITING: Final = RowQuery(
    _OldestRow,
    select(_delivery.channel, func.min(_delivery.oldest_accepted_at).label("accepted_at")).group_by(_delivery.channel),
).where(_delivery.finished_at.is_(None), _delivery.channel.in_(bindparam("channels", expanding=True)))


def is_draining(transaction: Transaction, channels: Collection[str], *, within: float, max_age: float) -> bool:
    """Whether nothing waits too long on any of these channels; the alert RelayOutboxStuck uses the same condition.

    What is older than `within` seconds is too old where nothing was delivered on its channel within them; what is older
    than `max_age` is too old even while others are delivered.
    """
    oldest = _OLDEST_WAITING.fetch_all(transaction.connection, {"channels": list(channels)})
    ages = [(row.channel, transaction.now - row.accepted_at) for row in oldest]
    since = transaction.now - within
    return all(
        age <= max_age and _FIND_DELIVERED.fetch_first(transaction.connection, {"on": channel, "since": since})
        for channel, age in ages
        if age > within
    )


_REPLY_TIMEOUT: Final = 5.0
DRAIN_WINDOW: Final = 600.0
MAX_WAITING_AGE: Final = 7200.0
"""Seconds, both: see `is_draining`. They are those of the alert RelayOutboxStuck."""


class DeadMansSwitch:
    """The dead man's switch of one watchdog, at the URL in a file. Deliveries on other than `channels` do not count."""

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
        """A heartbeat came; several during one ping cause one further ping."""
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
