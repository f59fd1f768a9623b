"""Judges the proofs of the path: counts those that were lost with their hop, and tells who can be told.

Everything that decides is in the outbox, so that a restart forgets nothing and of several replicas one tells. A proof
is lost two intervals after it began. A channel is not proven any more a little later than two intervals after its last
proof, since a single one may be lost, and the next may take longer than the last.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam

from services.relay.apis import AlertmanagerClient, ApiError
from services.relay.channels.log import LogSettings
from services.relay.intake.routing import PROOF_ALERT, UNPROVEN_ALERT
from services.relay.monitors.self_alerts import AlertPublisher, SelfAlert, resolve_removed
from services.relay.outbox.incidents import Incident, read_open_incident
from services.relay.outbox.proofs import (
    CHANNEL_PROOFS,
    FAILING,
    INTERVALS,
    NEVER_PROVEN,
    PATH_PROOFS,
    ChannelProofRow,
    ChannelTimes,
    Hop,
    PathProofRow,
    find_interval,
    read_times,
    record_alertmanager_time,
    record_losses,
)
from services.relay.outbox.served_channels import read_served_channels
from services.relay.outbox.tables import channel_proofs, path_proofs
from services.relay.proofs.hops import HopFinder, LostProof
from services.relay.proofs.queries import STEPS, format_hop
from services.relay.text import clean_line, truncate
from shared.web.time_format import format_clock

PATH_GROUP: Final = "path-proof"
_CHANNEL_GROUP: Final = f"{PATH_GROUP}/"
_CHECK_INTERVAL: Final = 5.0
_IDLE_INTERVAL: Final = 3600.0
_MARGIN: Final = 0.1
"""Of an interval: proofs take longer or shorter, by scrapes, evaluations and attempts."""
_ANSWER_TIMEOUT: Final = 3.0
_MAX_ERROR: Final = 200
_PROVEN_REMARK: Final = "It is proven again."
_BACK_REMARK: Final = "Proofs come again."
_REMOVED_REMARK: Final = "It is no longer proven: its channel or `proof.every` was removed."

log = structlog.get_logger(__name__)
_OF_INTERVALS: Final = CHANNEL_PROOFS.where(
    channel_proofs.c.interval_at >= bindparam("since"), channel_proofs.c.interval_at < bindparam("until")
).order_by(channel_proofs.c.interval_at.desc())
_NEWEST: Final = PATH_PROOFS.order_by(path_proofs.c.started_at.desc()).limit(1)


class _State(NamedTuple):
    """What the outbox has; times are unix seconds by its clock."""

    now: float
    times: Mapping[str, ChannelTimes]
    served: Collection[str]
    """The channels that are served now; after a pause, or where a clock was set, only once that is recorded again."""
    newest: PathProofRow | None
    """The newest proof that came."""
    over: Sequence[ChannelProofRow]
    """The proofs of the two intervals that are over, the newest first."""
    failing: Mapping[str, str | None]
    """The channels behind whose circuit breaker a proof waits, and why."""
    incidents: Mapping[str, Incident]
    """Those of unproven paths that are open, by their group."""

    def list_unproven(self, limit: float) -> dict[str, float]:
        """The channels that are served and were not proven for so many seconds, and when they were last."""
        found = ((name, self.times.get(name, NEVER_PROVEN).proven_at) for name in sorted(self.served))
        return {name: at for name, at in found if at is not None and at < self.now - limit}

    def find_own_loss(self, name: str) -> LostProof | None:
        """Where a proof got stuck that came; None if none did."""
        for row in self.over:
            if row.channel == name and row.level is None and row.hop in {None, Hop.OUTBOX, Hop.CHANNEL}:
                if row.hop == Hop.CHANNEL or row.attempts or name in self.failing:
                    error = row.error or self.failing.get(name) or "no attempt came to its end"
                    return LostProof(Hop.CHANNEL, error)
                return LostProof(Hop.OUTBOX, row.error or "it waits, and was never tried")
        return None


class ProofMonitor:
    """Judges the proofs of all channels.

    Args:
        publisher: of the relay's own incidents.
        finder: finds the hop of a proof that did not come.
        peers: every Alertmanager that sends to this relay.
    """

    def __init__(self, publisher: AlertPublisher, finder: HopFinder, peers: Sequence[AlertmanagerClient] = ()) -> None:
        self._publisher = publisher
        self._finder = finder
        self._peers = peers
        self._every = publisher.settings.proof.every
        self._names = sorted(publisher.settings.proven_channels)
        channels = publisher.settings.channels
        self._logs = {name for name in self._names if isinstance(channels[name], LogSettings)}
        """Channels that are always proven, and reach nobody."""
        groups = [PATH_GROUP, *(f"{_CHANNEL_GROUP}{name}" for name in self._names)] if self._names else []
        self._incident_ids = {each: _build_alert(each, LostProof(Hop.UNKNOWN, ""), 0.0).incident_id for each in groups}
        self._removed_resolved = False
        self._judged: float | None = None
        """The interval whose losses are committed."""
        self._lost: tuple[float, LostProof] | None = None
        """The last answer of the finder, and its interval."""
        self._asked: float | None = None
        """The proof of which Alertmanager was asked when it had it."""

    async def check(self) -> float:
        """Checks once; gives the seconds until the next check. Raises StoreUnavailableError."""
        if not self._removed_resolved:
            await resolve_removed(self._publisher, PATH_GROUP, self._incident_ids, _REMOVED_REMARK)
            self._removed_resolved = True
        if not self._names:
            return _IDLE_INTERVAL
        state = await self._publisher.store.read_at(self._read)
        await self._ask_alertmanager(state)
        await self._record_losses(state)
        await self._tell(state)
        return min(_CHECK_INTERVAL, self._every * _MARGIN)

    def _read(self, connection: Connection, now: float) -> _State:
        current = find_interval(now, self._every)
        values = {"since": current - INTERVALS * self._every, "until": current}
        incidents = ((group, read_open_incident(connection, each)) for group, each in self._incident_ids.items())
        return _State(
            now,
            read_times(connection),
            read_served_channels(connection, now).intersection(self._names),
            _NEWEST.fetch_first(connection),
            _OF_INTERVALS.fetch_all(connection, values),
            dict(FAILING.fetch_all(connection)),
            {group: incident for group, incident in incidents if incident is not None},
        )

    async def _record_losses(self, state: _State) -> None:
        """Of the interval that began two ago, on the channels that were served by then."""
        interval = find_interval(state.now, self._every) - INTERVALS * self._every
        if interval == self._judged:
            return
        since = {name: state.times.get(name, NEVER_PROVEN).served_since for name in state.served}
        served = [name for name, at in since.items() if at is not None and at <= interval]
        came = {row.channel for row in state.over if row.interval_at == interval}
        lost = LostProof(Hop.OUTBOX, "the replica that accepted it did not serve this channel")
        if served and not came:
            lost = await self._find(interval, state)
        found = await self._publisher.store.run(
            partial(record_losses, interval=interval, names=served, hop=lost.hop, error=lost.error)
        )
        self._judged = interval
        for name, hop in found.items():
            if name in self._publisher.settings.channels:
                self._publisher.metrics.proof_failures.labels(name, hop).inc()
                log.warning("proof of the path was lost", channel=name, hop=hop)

    async def _find(self, interval: float, state: _State) -> LostProof:
        """The hop, asked once for each interval."""
        if self._lost is None or self._lost[0] != interval:
            newest = state.newest
            labels = {"env": newest.env, "service": newest.service} if newest else {}
            self._lost = interval, await self._finder.find(interval, self._every, labels)
        return self._lost[1]

    async def _tell(self, state: _State) -> None:
        """Publishes what is not proven any more, and what is again."""
        limit = self._every * (INTERVALS + _MARGIN)
        unproven = state.list_unproven(limit)
        accepted_at = state.newest.accepted_at if state.newest else None
        if unproven and (accepted_at is None or accepted_at < state.now - limit):
            if PATH_GROUP not in state.incidents:
                lost = await self._find(find_interval(state.now, self._every) - self._every, state)
                await self._fire(PATH_GROUP, lost, accepted_at or min(unproven.values()), self._names)
        else:
            proven = [name for name in self._names if name not in unproven and name not in self._logs]
            for name, since in unproven.items():
                group, own = f"{_CHANNEL_GROUP}{name}", state.find_own_loss(name)
                if own is not None and group not in state.incidents:
                    await self._fire(group, own, since, proven or self._names)
        for group, incident in state.incidents.items():
            levels = state.times.get(group.removeprefix(_CHANNEL_GROUP), NEVER_PROVEN).by_level
            proven_at = accepted_at if group == PATH_GROUP else max(levels.values(), default=None)
            is_proven = proven_at is not None and proven_at >= state.now - limit
            remark = _BACK_REMARK if group == PATH_GROUP else _PROVEN_REMARK
            if is_proven and await self._publisher.resolve(incident, remark):
                log.info("path is proven again", incident_id=incident.id)

    async def _fire(self, group: str, lost: LostProof, since: float, channels: Sequence[str]) -> None:
        alert = _build_alert(group, lost, since)
        if await self._publisher.fire(alert, channels):
            log.error("path is not proven", channel=alert.labels.get("channel"), hop=lost.hop, error=lost.error)

    async def _ask_alertmanager(self, state: _State) -> None:
        """Stores when Alertmanager had the proof that came just now, if it can say so."""
        newest = state.newest
        if not self._peers or newest is None or newest.started_at == self._asked or newest.alertmanager_at is not None:
            return
        self._asked = newest.started_at
        if state.now - newest.accepted_at > _CHECK_INTERVAL * 2:
            return  # by now it may have got the alert again
        times = [newest.received_at]  # a clock of another machine may be a little ahead
        for peer in self._peers:
            with suppress(ApiError, TimeoutError):
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    at = await peer.read_update_time(PROOF_ALERT, "proof_started", f"{newest.started_at:.0f}")
                times += [] if at is None else [at]
        if len(times) > 1:
            await record_alertmanager_time(self._publisher.store, newest.started_at, min(times))


def _build_alert(group: str, lost: LostProof, since: float) -> SelfAlert:
    """The incident of a channel, or of all, since a time in unix seconds."""
    error = truncate(clean_line(lost.error), _MAX_ERROR)
    labels = {"alertname": UNPROVEN_ALERT, "severity": "warning", "hop": str(lost.hop)}
    subject, step = "No channel is", STEPS[lost.hop]
    if lost.hop is not Hop.UNKNOWN:  # whose step says so
        step += " Without an exporter, set the relay's `proof.every` to 0."
    if group != PATH_GROUP:
        labels["channel"] = group.removeprefix(_CHANNEL_GROUP)
        subject, step = f"{labels['channel']} is not", STEPS[lost.hop]
    return SelfAlert(
        group=group,
        labels=labels,
        title=f"{subject} proven since {format_clock(since)}: lost {format_hop(lost.hop)}: {error}",
        summary=f"A proof of the path of alerts was lost {format_hop(lost.hop)}",
        description=f"{step} The relay's page /proof shows each hop; the runbook KMSPathUnproven has the commands.",
    )
