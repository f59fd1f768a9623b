"""An alert that always fires has stopped coming: then nothing else would come either, and the relay tells it itself.

What comes in is how long each watchdog has been silent; out goes an incident of the relay's own, on the watchdog's
channels, and its end with the next heartbeat. The same heartbeats are passed on to an address outside of this house,
which notices when they stop, and so when the relay is gone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.relay.model import OWN_SOURCE
from services.relay.monitors.self_alerts import AlertPublisher, SelfAlert
from services.relay.outbox import watchdogs as outbox
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.incidents import iterate_open_incidents, read_open_incident

_CHECK_INTERVAL: Final = 5.0
"""The longest between two looks: another replica may have seen the heartbeat."""
_IDLE_INTERVAL: Final = 3600.0
_GROUP_PREFIX: Final = "watchdog/"
_RESOLVED_REMARK: Final = "The heartbeats are back."
_REMOVED_REMARK: Final = "This watchdog is no longer configured."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Watchdog:
    """An alert that always fires."""

    name: str
    expect_every: float
    """Seconds; a longer silence is told."""
    channels: Collection[str]
    ping_url_file: Path | None
    """Holds the outside address."""

    def build_alert(self) -> SelfAlert:
        """The incident of its absence."""
        return SelfAlert(
            group=f"{_GROUP_PREFIX}{self.name}",
            labels={"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": self.name},
            summary=f"No heartbeat of {self.name} for {self.expect_every:g} s: alerts may not reach anybody",
            description=(
                f"No heartbeat of {self.name} for {self.expect_every:g} s: Prometheus, Alertmanager or the way between "
                "them and the relay is broken, and so other alerts will not arrive either. Check that Prometheus runs "
                f"and {self.name} fires on its page of alerts, that Alertmanager lists it and routes it to the relay "
                "at least as often as `expect_every`, and what Alertmanager's log says of its notifications."
            ),
        )


class IntakeUptime:
    """For how long heartbeats could be kept since the last look: of the time before, nothing is concluded.

    No wall clock knows that: one that jumps ahead, as after a machine was suspended, is no silence.

    Args:
        monotonic: seconds that no clock change touches.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._started_at = self._monotonic()

    def measure_and_restart(self) -> float:
        """Return the seconds since the last restart, and restart."""
        before, self._started_at = self._started_at, self._monotonic()
        return self._started_at - before


class WatchdogMonitor:
    """Tells which watchdogs stay away, and which are back.

    Args:
        publisher: tells it.
        watchdogs: the configured ones.
        uptime: from now on, since a watchdog that was configured again was awaited by nobody before.
    """

    def __init__(self, publisher: AlertPublisher, watchdogs: Sequence[Watchdog], uptime: IntakeUptime) -> None:
        self._publisher = publisher
        self._watchdogs = watchdogs
        self._uptime = uptime
        self._uptime.restart()
        self._removed_resolved = False

    async def check(self) -> float:
        """Looks once; gives the seconds until the next look. Raises StoreUnavailableError."""
        try:
            return await self._check()
        except StoreUnavailableError:
            self._uptime.restart()  # the outbox took none
            raise

    async def _check(self) -> float:
        store, names = self._publisher.store, [watchdog.name for watchdog in self._watchdogs]
        if not self._removed_resolved:
            await self._resolve_removed(names)
            self._removed_resolved = True
        if not names:
            return _IDLE_INTERVAL
        expected = {watchdog.name: watchdog.expect_every for watchdog in self._watchdogs}
        able_for = self._uptime.measure_and_restart()
        silences = await store.run(lambda transaction: outbox.count_silence(transaction, expected, able_for))
        pause = _CHECK_INTERVAL
        for watchdog in self._watchdogs:
            absent = watchdog.build_alert()
            told = await store.read(partial(read_open_incident, incident_id=absent.incident_id))
            silent, since_seen = silences[watchdog.name]
            if silent >= watchdog.expect_every:
                if told is None and await self._publisher.fire(absent, watchdog.channels):
                    log.error("watchdog is absent", watchdog=watchdog.name, expect_every=watchdog.expect_every)
            else:
                pause = min(pause, watchdog.expect_every - silent)
                back = since_seen < watchdog.expect_every
                if told is not None and back and await self._publisher.resolve(told, _RESOLVED_REMARK):
                    log.info("watchdog is back after an absence", watchdog=watchdog.name)
        return pause

    async def _resolve_removed(self, names: Collection[str]) -> None:
        """Ends the incidents of watchdogs that a person took out of the configuration while they were absent."""
        async for incident in iterate_open_incidents(self._publisher.store):
            event = incident.event
            if event is None or event.source != OWN_SOURCE or not event.group_key.startswith(_GROUP_PREFIX):
                continue
            if event.group_key.removeprefix(_GROUP_PREFIX) not in names:
                await self._publisher.resolve(incident, _REMOVED_REMARK)
