"""Publishes an alert when a watchdog is absent: then Prometheus or Alertmanager may be down, and no other alert comes.

The alert is an incident of the relay's own, on the watchdog's channels; the next heartbeat resolves it. Each heartbeat
also goes to a dead man's switch, which notices when the relay itself is gone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.relay.model import OWN_SOURCE
from services.relay.monitors.self_alerts import AlertPublisher, SelfAlert
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.incidents import iterate_open_incidents, read_open_incident
from services.relay.outbox.watchdog_silence import count_silence
from shared.net.egress import EgressSettings

_CHECK_INTERVAL: Final = 5.0
"""The longest time between two checks: another replica may have received the heartbeat."""
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
    """Seconds; a longer absence is an alert."""
    channels: Collection[str]
    ping_url_file: Path | None
    """Contains the URL of its dead man's switch."""
    egress: EgressSettings = field(default_factory=EgressSettings)
    """How that URL is reached."""

    def build_alert(self) -> SelfAlert:
        """The incident of its absence."""
        return SelfAlert(
            group=f"{_GROUP_PREFIX}{self.name}",
            labels={"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": self.name},
            title=f"Prometheus or Alertmanager is silent: no heartbeat of {self.name} for {self.expect_every:g} s",
            summary="No other alert will arrive either",
            description=(
                "Prometheus, Alertmanager or the connection between them and the relay is broken. Check that "
                f"Prometheus runs and {self.name} fires on its page of alerts, that Alertmanager lists it and routes "
                "it to the relay at least as often as `expect_every`, and that Alertmanager's log shows no failed "
                "notifications."
            ),
        )


class IntakeUptime:
    """How long heartbeats could be stored since the last check; only in that time can a watchdog be absent.

    A wall clock does not show that: one that jumps ahead, as after a machine was suspended, is no absence.

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
    """Publishes which watchdogs are absent, and which are back.

    Args:
        publisher: of the alerts.
        watchdogs: the configured ones.
        uptime: restarted, because a watchdog that is configured again was not expected before.
    """

    def __init__(self, publisher: AlertPublisher, watchdogs: Sequence[Watchdog], uptime: IntakeUptime) -> None:
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
            await self._resolve_removed(names)
            self._removed_resolved = True
        if not names:
            return _IDLE_INTERVAL
        expected = {watchdog.name: watchdog.expect_every for watchdog in self._watchdogs}
        uptime = self._uptime.measure_and_restart()
        silences = await store.run(lambda transaction: count_silence(transaction, expected, uptime))
        pause = _CHECK_INTERVAL
        for watchdog in self._watchdogs:
            absent = watchdog.build_alert()
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

    async def _resolve_removed(self, names: Collection[str]) -> None:
        """Resolves the incidents of watchdogs that were removed from the configuration while they were absent."""
        async for incident in iterate_open_incidents(self._publisher.store):
            event = incident.event
            if event is None or event.source != OWN_SOURCE or not event.group_key.startswith(_GROUP_PREFIX):
                continue
            if event.group_key.removeprefix(_GROUP_PREFIX) not in names:
                await self._publisher.resolve(incident, _REMOVED_REMARK)
