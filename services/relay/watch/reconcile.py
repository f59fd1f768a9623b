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

from services.relay.identity import OWN_SOURCE
from services.relay.model import Event, Status
from services.relay.outbox.incidents import (
    Incident,
    closed_by_us,
    of_a_backup,
    open_incident,
    open_incidents,
    told_firing,
)
from services.relay.outbox.restored import release
from services.relay.outbox.same_group import group_id
from services.relay.watch.alertmanager import Active, Peer, PeerError
from services.relay.watch.telling import Teller

ENDED: Final = "Closed by the relay: Alertmanager no longer has it; it may have ended while silenced or inhibited."
AGAIN: Final = "It fires again since the relay closed it; Alertmanager may tell of it only after its repeat_interval."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds."""

    between_rounds: float = 60.0
    absent: float = 300.0
    """How long an incident's alerts must have been gone."""
    up: float = 300.0
    """How long an Alertmanager must have been up, for it to have been told again of what fires."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """What all Alertmanagers together know."""

    labels: Mapping[str, Mapping[str, str]]
    active: Mapping[str, Active]
    counted: int
    """How many of them answered, and have been up for long enough."""


class Reconcile:
    """Compares until it is no longer asked to.

    Args:
        teller: tells the ends.
        peers: every Alertmanager that sends here; at least one.
        waits: how long things must have been so.
        monotonic: seconds that no clock change touches.
    """

    def __init__(self, teller: Teller, peers: Sequence[Peer], waits: Waits, monotonic: Callable[[], float]) -> None:
        self._teller = teller
        self._monotonic = monotonic
        self._peers = peers
        self._waits = waits
        self._problems: dict[str, str] = {}
        self._absent_since: dict[str, float] = {}
        """By the id of the incident's latest event: where another came, its alerts have been there again."""
        self._back: set[str] = set()
        """The latest events of closed incidents that fired again at the last round."""

    async def round(self) -> float:
        """Compares once; gives the seconds until the next round. Raises StoreUnavailableError."""
        sight = await self._look()
        await self._compare_backup(sight)
        await self._close(sight)
        await self._open_again(sight)
        return self._waits.between_rounds

    async def _compare_backup(self, sight: _Sight) -> None:
        """Of what waits in a restored backup, nothing goes out before it was compared: it may be over for long."""
        if not sight.counted:
            return
        store = self._teller.store
        async for incident in of_a_backup(store, going_on=True):
            if await self._is_gone(incident, sight):
                await self._teller.end(incident, ENDED)
        async for incident in of_a_backup(store, going_on=False):
            event = _back(incident.event, sight) if incident.event else None
            if event is not None:
                await self._teller.follow(incident, event)
        await release(store)

    async def _close(self, sight: _Sight) -> None:
        before, self._absent_since = self._absent_since, {}
        if not sight.counted:
            return
        now = self._monotonic()
        over: list[str] = []
        going_on: set[str] = set()
        """The groups of which an incident goes on, or may."""
        async for incident in open_incidents(self._teller.store):
            since = now
            if await self._is_gone(incident, sight):
                since = self._absent_since[incident.event_id] = before.get(incident.event_id, now)
            if now - since >= self._waits.absent:
                over.append(incident.id)
            elif incident.event is not None:
                going_on.add(group_id(incident.event))
        for one in over:  # read again, for all of them may be too much for the memory
            read = await self._teller.store.read(partial(open_incident, incident_id=one))
            if read is None or read.event is None or read.event_id not in self._absent_since:
                continue  # something has come meanwhile
            if group_id(read.event) not in going_on and await self._teller.end(read, ENDED):
                log.info("an incident was closed, for Alertmanager no longer has its alerts", incident=one)

    async def _open_again(self, sight: _Sight) -> None:
        before, self._back = self._back, set()
        async for incident in closed_by_us(self._teller.store):
            event = _back(incident.event, sight) if incident.event else None
            if event is None:
                continue
            if incident.event_id not in before:
                self._back.add(incident.event_id)  # Alertmanager may still tell of it, or be told of what inhibits it
            elif await self._teller.follow(incident, event):
                log.info("an incident that the relay had closed fires again", incident=incident.id)

    async def _look(self) -> _Sight:
        labels: dict[str, Mapping[str, str]] = {}
        active: dict[str, Active] = {}
        counted = 0
        for peer in self._peers:  # one after the other: each answer may have megabytes
            try:
                known = await peer.ask()
            except PeerError as error:
                self._say(peer, str(error))
                continue
            labels |= known.labels
            active |= known.active
            young = self._teller.store.clock() - known.since < self._waits.up
            counted += not young
            self._say(peer, f"it started less than {self._waits.up:g} s ago" if young else None)
        return _Sight(labels, active, counted)

    async def _is_gone(self, incident: Incident, sight: _Sight) -> bool:
        event = incident.event
        if event is None or event.source == OWN_SOURCE:
            return False
        # With a source there are Alertmanagers that do not know of one another: it may be the one that did not answer.
        if event.source and sight.counted < len(self._peers):
            return False
        firing = {alert.fingerprint for alert in event.alerts if alert.status is Status.FIRING}
        if not firing.isdisjoint(sight.labels):
            return False
        if event.not_listed:
            return not any(event.group_labels.items() <= labels.items() for labels in sight.labels.values())
        if not firing:
            return False
        told = await self._teller.store.read(partial(told_firing, incident_id=incident.id))
        return told.isdisjoint(sight.labels)

    def _say(self, peer: Peer, problem: str | None) -> None:
        """Logs what hinders a comparison when it begins and when it ends, not each minute."""
        if problem == self._problems.get(peer.url):
            return
        if problem is None:
            log.info("open incidents are compared with Alertmanager again", url=peer.url)
            del self._problems[peer.url]
        else:
            log.warning("open incidents are not compared with an Alertmanager", url=peer.url, problem=problem)
            self._problems[peer.url] = problem


def _back(event: Event, sight: _Sight) -> Event | None:
    """What fires again of an incident that the relay closed, and is told of; None where nothing does."""
    alerts = tuple(
        replace(alert, status=Status.FIRING, starts_at=active.starts_at, ends_at=None)
        for alert in event.alerts
        if (active := sight.active.get(alert.fingerprint)) and event.receiver in active.receivers
    )
    if not alerts:
        return None
    return replace(event, status=Status.FIRING, alerts=alerts, unlisted_firing=b"", unlisted_resolved=b"", note=AGAIN)
