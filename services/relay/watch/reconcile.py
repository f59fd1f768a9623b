"""Alertmanager sends no all-clear for an alert that is silenced or inhibited when it ends: so the relay tells it.

What comes in are the open incidents and the alerts that Alertmanager knows; out goes the end of an incident whose
alerts it has not known for a while. A false all-clear is worse than a late one, so a doubt keeps the incident open:

- What Alertmanager cut off cannot be compared, so an incident with truncated alerts is never closed here.
- Where some alerts of a group are gone and others fire, Alertmanager goes on telling of it.
- How long they have been gone is counted anew after a round in which no Alertmanager counted, and after a restart.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from services.relay.model import Status
from services.relay.outbox.incidents import PAGE, OpenIncident, open_incidents
from services.relay.watch.alertmanager import Peer, PeerError
from services.relay.watch.telling import SOURCE, Teller

NOTE: Final = "Closed by the relay: it ended while silenced or inhibited, and Alertmanager sends no all-clear then."

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

    fingerprints: frozenset[str]
    counted: int
    """How many of them answered, and have been up for long enough."""


class Reconcile:
    """Compares until it is no longer asked to.

    Args:
        teller: tells the ends.
        peers: every Alertmanager that sends here; at least one.
        waits: how long things must have been so.
    """

    def __init__(self, teller: Teller, peers: Sequence[Peer], waits: Waits) -> None:
        self._teller = teller
        self._peers = peers
        self._waits = waits
        self._problems: dict[str, str] = {}
        self._absent_since: dict[str, float] = {}
        """By the id of the incident's latest event: where another came, its alerts have been there again."""

    async def round(self) -> float:
        """Compares once; gives the seconds until the next round. Raises StoreUnavailableError."""
        sight = await self._look()
        before, self._absent_since = self._absent_since, {}
        if sight.counted:
            now = asyncio.get_running_loop().time()
            async for incident in self._open():
                if not self._is_gone(incident, sight):
                    continue
                since = before.get(incident.event_id, now)
                if now - since < self._waits.absent:
                    self._absent_since[incident.event_id] = since
                elif await self._teller.end(incident, NOTE):
                    log.info("an incident ended while silenced or inhibited", incident=incident.id)
        return self._waits.between_rounds

    async def _look(self) -> _Sight:
        fingerprints: set[str] = set()
        counted = 0
        for peer in self._peers:  # one after the other: each answer may have megabytes
            try:
                known = await peer.ask()
            except PeerError as error:
                self._say(peer, str(error))
                continue
            fingerprints |= known.fingerprints
            young = self._teller.store.clock() - known.since < self._waits.up
            counted += not young
            self._say(peer, f"it started less than {self._waits.up:g} s ago" if young else None)
        return _Sight(frozenset(fingerprints), counted)

    async def _open(self) -> AsyncIterator[OpenIncident]:
        """Every open incident, page by page."""
        page = await self._teller.store.read(partial(open_incidents, after=""))
        while page:
            for incident in page:
                yield incident
            page = (
                await self._teller.store.read(partial(open_incidents, after=page[-1].id)) if len(page) == PAGE else []
            )

    def _is_gone(self, incident: OpenIncident, sight: _Sight) -> bool:
        event = incident.event
        if event is None or event.source == SOURCE or event.truncated_alerts:
            return False
        # With a source there are Alertmanagers that do not know of one another: it may be the one that did not answer.
        if event.source and sight.counted < len(self._peers):
            return False
        firing = {alert.fingerprint for alert in event.alerts if alert.status is Status.FIRING}
        return bool(firing) and firing.isdisjoint(sight.fingerprints)

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
