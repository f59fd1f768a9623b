"""Alertmanager sends no all-clear for an alert that is silenced or inhibited when it ends: so the relay tells it.

Why Alertmanager no longer has an alert it does not say: it may also have lost its state, or its resolve was lost. So
the relay says no more than it knows. Should Alertmanager's own resolve come after all, it is no news (see `identity`).

What comes in are the open incidents and the alerts that Alertmanager knows; out goes the end of an incident whose
alerts it has not known for a while. A false all-clear is worse than a late one, so a doubt keeps the incident open:

- What is not listed cannot be compared, so an incident with such alerts is closed only where nothing that Alertmanager
  knows has the labels of its group.
- Where some alerts of a group are gone and others fire, Alertmanager goes on telling of it: so every alert counts that
  the incident last told as firing, though its latest event may not speak of it.
- Where another incident of the same source and groupKey goes on, which another receiver has, neither is closed: to
  PagerDuty they are one.
- How long they have been gone is counted anew after a round in which no Alertmanager counted, and after a restart.

Alertmanager's own log still says that it has told of such an alert: should it fire again, it would be silent until its
`repeat_interval` is over, with our all-clear standing. So the relay tells that, too.
https://github.com/prometheus/alertmanager/blob/main/notify/notify.go, DedupStage.needsUpdate
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from services.relay.model import OWN_SOURCE, Event, Status
from services.relay.monitors.alertmanager_api import ActiveAlert, AlertmanagerClient, AlertmanagerError
from services.relay.monitors.self_alerts import AlertPublisher
from services.relay.outbox.alert_groups import build_group_id
from services.relay.outbox.incidents import (
    Incident,
    iterate_closed_by_relay,
    iterate_open_incidents,
    iterate_restored,
    read_last_firing,
    read_open_incident,
)
from services.relay.outbox.restore_detection import release_compared

CLOSED_REMARK: Final = (
    "Closed by the relay: Alertmanager no longer has it; it may have ended while silenced or inhibited."
)
REFIRED_REMARK: Final = (
    "It fires again since the relay closed it; Alertmanager may tell of it only after its repeat_interval."
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReconcileTimes:
    """Seconds."""

    interval: float = 60.0
    min_absence: float = 300.0
    """How long an incident's alerts must have been gone."""
    min_uptime: float = 300.0
    """How long an Alertmanager must have been up, for it to have been told again of what fires."""


@dataclass(frozen=True, slots=True)
class _AlertmanagerView:
    """What all Alertmanagers together know."""

    labels_by_fingerprint: Mapping[str, Mapping[str, str]]
    active_by_fingerprint: Mapping[str, ActiveAlert]
    usable_peers: int
    """How many of them answered, and have been up for long enough."""


class Reconciler:
    """Compares until it is no longer asked to.

    Args:
        publisher: tells the ends.
        peers: every Alertmanager that sends here; at least one.
        waits: how long things must have been so.
        monotonic: seconds that no clock change touches.
    """

    def __init__(
        self,
        publisher: AlertPublisher,
        peers: Sequence[AlertmanagerClient],
        waits: ReconcileTimes,
        monotonic: Callable[[], float],
    ) -> None:
        self._publisher = publisher
        self._monotonic = monotonic
        self._peers = peers
        self._times = waits
        self._errors: dict[str, str] = {}
        self._absent_since: dict[str, float] = {}
        """By the id of the incident's latest event: where another came, its alerts have been there again."""
        self._refired: set[str] = set()
        """The latest events of closed incidents that fired again at the last round."""

    async def reconcile(self) -> float:
        """Compares once; gives the seconds until the next round. Raises StoreUnavailableError."""
        sight = await self._query_peers()
        await self._compare_backup(sight)
        await self._close_absent(sight)
        await self._reopen_firing(sight)
        return self._times.interval

    async def _compare_backup(self, view: _AlertmanagerView) -> None:
        """Of what waits in a restored backup, nothing goes out before it was compared: it may be over for long."""
        if not view.usable_peers:
            return
        store = self._publisher.store
        async for incident in iterate_restored(store, is_open=True):
            if await self._is_absent(incident, view):
                await self._publisher.resolve(incident, CLOSED_REMARK)
        async for incident in iterate_restored(store, is_open=False):
            event = _build_refired_event(incident.event, view) if incident.event else None
            if event is not None:
                await self._publisher.publish(incident, event)
        await release_compared(store)

    async def _close_absent(self, view: _AlertmanagerView) -> None:
        before, self._absent_since = self._absent_since, {}
        if not view.usable_peers:
            return
        now = self._monotonic()
        over: list[str] = []
        going_on: set[str] = set()
        """The groups of which an incident goes on, or may."""
        async for incident in iterate_open_incidents(self._publisher.store):
            since = now
            if await self._is_absent(incident, view):
                since = self._absent_since[incident.event_id] = before.get(incident.event_id, now)
            if now - since >= self._times.min_absence:
                over.append(incident.id)
            elif incident.event is not None:
                going_on.add(build_group_id(incident.event))
        for one in over:  # read again, for all of them may be too much for the memory
            read = await self._publisher.store.read(partial(read_open_incident, incident_id=one))
            if read is None or read.event is None or read.event_id not in self._absent_since:
                continue  # something has come meanwhile
            if build_group_id(read.event) not in going_on and await self._publisher.resolve(read, CLOSED_REMARK):
                log.info("incident closed: Alertmanager no longer has its alerts", incident_id=one)

    async def _reopen_firing(self, view: _AlertmanagerView) -> None:
        before, self._refired = self._refired, set()
        async for incident in iterate_closed_by_relay(self._publisher.store):
            event = _build_refired_event(incident.event, view) if incident.event else None
            if event is None:
                continue
            if incident.event_id not in before:
                self._refired.add(
                    incident.event_id
                )  # Alertmanager may still tell of it, or be told of what inhibits it
            elif await self._publisher.publish(incident, event):
                log.info("incident closed by the relay fires again", incident_id=incident.id)

    async def _query_peers(self) -> _AlertmanagerView:
        labels: dict[str, Mapping[str, str]] = {}
        active: dict[str, ActiveAlert] = {}
        counted = 0
        for peer in self._peers:  # one after the other: each answer may have megabytes
            try:
                known = await peer.read_state()
            except AlertmanagerError as error:
                self._log_error_change(peer, str(error))
                continue
            labels |= known.labels_by_fingerprint
            active |= known.active_by_fingerprint
            young = self._publisher.store.clock() - known.started_at < self._times.min_uptime
            counted += not young
            self._log_error_change(peer, f"it started less than {self._times.min_uptime:g} s ago" if young else None)
        return _AlertmanagerView(labels, active, counted)

    async def _is_absent(self, incident: Incident, view: _AlertmanagerView) -> bool:
        event = incident.event
        if event is None or event.source == OWN_SOURCE:
            return False
        # With a source there are Alertmanagers that do not know of one another: it may be the one that did not answer.
        if event.source and view.usable_peers < len(self._peers):
            return False
        firing = {alert.fingerprint for alert in event.alerts if alert.status is Status.FIRING}
        if not firing.isdisjoint(view.labels_by_fingerprint):
            return False
        if event.unlisted_count:
            return not any(
                event.group_labels.items() <= labels.items() for labels in view.labels_by_fingerprint.values()
            )
        if not firing:
            return False
        told = await self._publisher.store.read(partial(read_last_firing, incident_id=incident.id))
        return told.isdisjoint(view.labels_by_fingerprint)

    def _log_error_change(self, peer: AlertmanagerClient, error: str | None) -> None:
        """Logs what hinders a comparison when it begins and when it ends, not each minute."""
        if error == self._errors.get(peer.url):
            return
        if error is None:
            log.info("reconcile works with this Alertmanager again", url=peer.url)
            del self._errors[peer.url]
        else:
            log.warning("reconcile cannot use an Alertmanager", url=peer.url, error=error)
            self._errors[peer.url] = error


def _build_refired_event(event: Event, view: _AlertmanagerView) -> Event | None:
    """What fires again of an incident that the relay closed, and is told of; None where nothing does."""
    alerts = tuple(
        replace(alert, status=Status.FIRING, starts_at=active.starts_at, ends_at=None)
        for alert in event.alerts
        if (active := view.active_by_fingerprint.get(alert.fingerprint)) and event.receiver in active.receivers
    )
    if not alerts:
        return None
    return replace(
        event, status=Status.FIRING, alerts=alerts, unlisted_firing=b"", unlisted_resolved=b"", remark=REFIRED_REMARK
    )
