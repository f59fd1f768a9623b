"""Compares open incidents with Alertmanager, which sends no resolve for an alert that is silenced or inhibited by then.

Input are the open incidents and the alerts that Alertmanager has; output is the resolve of an incident whose alerts it
has not had for a while. Alertmanager does not say why it no longer has an alert: it may have lost its state, or its
resolve was lost. So the resolve claims no more than is known. If Alertmanager's own resolve comes after all, it is a
duplicate (see `intake.acceptance`). A false resolve is worse than a late one, so in doubt the incident stays open:

- A peer may never have got an alert that another one has. So while a peer does not count, an incident is closed only
  if one that counts was seen to have it, since that peer and this process started.
- Alerts that are not listed cannot be compared. An incident with such alerts is closed only if no alert in Alertmanager
  has the labels of its group.
- If some alerts of a group are gone and others fire, Alertmanager keeps sending the group. So every alert counts that
  the incident had firing last, even if its latest event lacks it.
- The absence is measured from the start again after a round in which no Alertmanager counted, and after a restart.

Alertmanager's notification log still contains such an alert: if it fires again, Alertmanager sends nothing until its
`repeat_interval` is over, while the incident is resolved. So the relay publishes that, too.
https://github.com/prometheus/alertmanager/blob/main/notify/notify.go, DedupStage.needsUpdate
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from services.relay.apis import ActiveAlert, AlertmanagerClient, ApiError
from services.relay.model import OWN_SOURCE, Event, Status
from services.relay.monitors.self_alerts import AlertPublisher
from services.relay.outbox.incidents import (
    Incident,
    iterate_closed_by_relay,
    iterate_open_incidents,
    iterate_restored,
    read_last_firing,
    read_open_incident,
)
from services.relay.outbox.recovery import read_postponed_until, release_compared

CLOSED_REMARK: Final = (
    "Closed by the relay: Alertmanager no longer has it; it may have ended while silenced or inhibited."
)
REFIRED_REMARK: Final = (
    "It fires again since the relay closed it; Alertmanager may send it only after its repeat_interval."
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReconcileTimes:
    """Seconds."""

    interval: float = 60.0
    min_absence: float = 300.0
    """How long an incident's alerts must have been gone."""
    min_uptime: float = 300.0
    """How long an Alertmanager must have been up, so that Prometheus has sent it again what fires."""


_PeerRun = tuple[str, float]
"""The URL of a peer, and when it started: a restart loses its alerts."""


@dataclass(frozen=True, slots=True)
class _AlertmanagerView:
    labels_by_fingerprint: Mapping[str, Mapping[str, str]]
    active_by_fingerprint: Mapping[str, ActiveAlert]
    fingerprints_by_peer: Mapping[_PeerRun, frozenset[str]]
    """What each has of them that answered."""
    usable_peers: frozenset[_PeerRun]
    """Those that answered, and have been up for long enough."""


class Reconciler:
    """Compares open incidents with `peers`, every Alertmanager that sends to this relay."""

    def __init__(
        self,
        publisher: AlertPublisher,
        peers: Sequence[AlertmanagerClient],
        times: ReconcileTimes,
        monotonic: Callable[[], float],
    ) -> None:
        self._publisher = publisher
        self._monotonic = monotonic
        self._peers = peers
        self._times = times
        self._errors: dict[str, str] = {}
        self._absent_since: dict[str, float] = {}
        """By the id of the incident's latest event: another event means that its alerts were there again."""
        self._seen_at: dict[tuple[str, int], set[_PeerRun]] = {}
        """The peers that were seen to have alerts of an open incident, by its id and episode."""
        self._refired: set[str] = set()
        """The latest events of closed incidents that fired again at the last round."""

    async def reconcile(self) -> float:
        """Compares once; gives the seconds until the next round. Raises StoreUnavailableError."""
        view = await self._query_peers()
        await self._compare_backup(view)
        await self._close_absent(view)
        await self._reopen_firing(view)
        return self._times.interval

    async def _compare_backup(self, view: _AlertmanagerView) -> None:
        """Compares what waits in a restored backup before it is sent: it may be resolved long since."""
        store = self._publisher.store
        postponed_until = await store.read(read_postponed_until) if view.usable_peers else None
        if postponed_until is None:
            return
        async for incident in iterate_restored(store, is_open=True):
            if await self._is_absent(incident, view):
                await self._publisher.resolve(incident, CLOSED_REMARK)
        async for incident in iterate_restored(store, is_open=False):
            event = _build_refired_event(incident.event, view) if incident.event else None
            if event is not None:
                await self._publisher.publish(incident, event)
        await release_compared(store, postponed_until)

    async def _close_absent(self, view: _AlertmanagerView) -> None:
        before, self._absent_since = self._absent_since, {}
        if not view.usable_peers:
            return
        now = self._monotonic()
        closable: list[tuple[str, str]] = []
        open_episodes: set[tuple[str, int]] = set()
        async for incident in iterate_open_incidents(self._publisher.store):
            open_episodes.add((incident.id, incident.episode))
            since = now
            if await self._is_absent(incident, view):
                since = self._absent_since[incident.event_id] = before.get(incident.event_id, now)
            if now - since >= self._times.min_absence:
                closable.append((incident.id, incident.event_id))
        self._seen_at = {episode: peers for episode, peers in self._seen_at.items() if episode in open_episodes}
        for incident_id, event_id in closable:  # read again, because all of them may be too much for the memory
            read = await self._publisher.store.read(partial(read_open_incident, incident_id=incident_id))
            if read is None or read.event_id != event_id:
                continue  # a new event came meanwhile
            if await self._publisher.resolve(read, CLOSED_REMARK):
                log.info("incident closed: Alertmanager no longer has its alerts", incident_id=incident_id)

    async def _reopen_firing(self, view: _AlertmanagerView) -> None:
        before, self._refired = self._refired, set()
        async for incident in iterate_closed_by_relay(self._publisher.store):
            event = _build_refired_event(incident.event, view) if incident.event else None
            if event is None:
                continue
            if incident.event_id not in before:
                self._refired.add(incident.event_id)  # Alertmanager may still send it, or get what inhibits it
            elif await self._publisher.publish(incident, event):
                log.info("incident closed by the relay fires again", incident_id=incident.id)

    async def _query_peers(self) -> _AlertmanagerView:
        labels: dict[str, Mapping[str, str]] = {}
        active: dict[str, ActiveAlert] = {}
        fingerprints: dict[_PeerRun, frozenset[str]] = {}
        usable: set[_PeerRun] = set()
        for peer in self._peers:  # one after the other: each reply may have megabytes
            try:
                state = await peer.read_state()
            except ApiError as error:
                self._log_error_change(peer, str(error))
                continue
            labels |= state.labels_by_fingerprint
            active |= state.active_by_fingerprint
            run = (peer.url, state.started_at)
            fingerprints[run] = frozenset(state.labels_by_fingerprint)
            started_recently = self._publisher.store.clock() - state.started_at < self._times.min_uptime
            if not started_recently:
                usable.add(run)
            self._log_error_change(
                peer, f"it started less than {self._times.min_uptime:g} s ago" if started_recently else None
            )
        return _AlertmanagerView(labels, active, fingerprints, frozenset(usable))

    async def _is_absent(self, incident: Incident, view: _AlertmanagerView) -> bool:
        event = incident.event
        if event is None or event.source == OWN_SOURCE:
            return False
        alerts = {alert.fingerprint for alert in event.alerts if alert.status is Status.FIRING}
        if event.unlisted_count:
            group = event.group_labels.items()
            alerts |= {each for each, labels in view.labels_by_fingerprint.items() if group <= labels.items()}
        elif not alerts:
            return False
        elif alerts.isdisjoint(view.labels_by_fingerprint):
            alerts |= await self._publisher.store.read(partial(read_last_firing, incident_id=incident.id))
        holders = {peer for peer, held in view.fingerprints_by_peer.items() if not alerts.isdisjoint(held)}
        if holders:
            self._seen_at.setdefault((incident.id, incident.episode), set()).update(holders)
            return False
        if len(view.usable_peers) == len(self._peers):
            return True
        # With a source there are independent Alertmanagers: another one may have an alert with the same labels.
        seen_at = self._seen_at.get((incident.id, incident.episode), set())
        return not event.source and not seen_at.isdisjoint(view.usable_peers)

    def _log_error_change(self, peer: AlertmanagerClient, error: str | None) -> None:
        if error == self._errors.get(peer.url):
            return
        if error is None:
            log.info("reconcile works with this Alertmanager again", url=peer.url)
            del self._errors[peer.url]
        else:
            log.warning("reconcile cannot use an Alertmanager", url=peer.url, error=error)
            self._errors[peer.url] = error


def _build_refired_event(event: Event, view: _AlertmanagerView) -> Event | None:
    """The event of what fires again of an incident that the relay closed; None if nothing does."""
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
