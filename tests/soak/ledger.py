"""The ledger of a day: what was accepted, delivered, paged and held comes in; a line for each promise goes out.

A line holds or does not, and says its numbers. `read_outbox` alone looks at a database; everything else is pure.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import create_engine, select

from services.relay.outbox import tables
from shared.sql.database_url import DatabaseUrl
from tests.relay.delivery_oracle.evidence import Channel, Delivery, Event, read_delivery
from tests.relay.delivery_oracle.outbox_invariants import check_stored
from tests.soak.alerts import NAME, Episode
from tests.soak.day import CLOCK_STEP, Happened
from tests.soak.plan import HINDERS_PAGES
from tests.soak.received import Page, Told
from tests.soak.samples import Memory, measure_slope

CLEAR_SECONDS: Final = 20.0
"""For which an alert has to fire with nothing in its way before it must have paged."""
RECOVERY_SECONDS: Final = 10.0
"""After a disturbance, in which what waited is sent and programs come up."""
ROUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "kms-critical": ("slack-critical", "email-secops", "email-oncall", "pagerduty"),
    "kms-security": ("slack-security", "email-secops"),
}
"""Of the demo: the channels of each receiver."""
UNPROVEN_SECONDS: Final = 50.0
"""Two intervals of the demo's proofs, and what its rules and routing take; after them an alert has to tell."""
REPEAT_SECONDS: Final = 120.0
"""After which Alertmanager tells again what still fires: the demo's, on the way around the relay."""
LEAST_WATCHED_SECONDS: Final = 180.0
"""Of one life of a server after the storm, before its slope says whether it grows."""
SHORT_DAY_SECONDS: Final = 600.0
"""A day under this may have no storm, or end too soon after it."""
FLAT_SHARE: Final = 0.1
"""By how much of its memory a server may grow from then on: the sender fills its caches for some 600 messages more."""
_RECEIPT_KEYS: Final = ("ts", "message_id", "dedup_key")
_EXAMPLES: Final = 3
_TELLS_OF_ALL: Final = ("No channel is proven", "RelayStoreUnavailable", "RelayDown")
"""What says that no channel can be proven now; a relay whose disk is full cannot say it itself."""


class Line(NamedTuple):
    """One promise."""

    holds: bool
    what: str

    def __str__(self) -> str:
        return f"  {'ok  ' if self.holds else 'FAIL'}  {self.what}"


class Outbox(NamedTuple):
    """Everything that the relay stored."""

    events: Sequence[Event]
    deliveries: Sequence[Delivery]
    receipts: Mapping[str, str]
    """The key of each delivered delivery's message at its provider, by the delivery's id."""
    names: Mapping[str, str]
    """The alert of each incident."""
    unproven: Sequence[Told] = ()
    """What the events of KMSPathUnproven say."""


def read_outbox(database: DatabaseUrl) -> Outbox:
    """For a thread."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            of = tables.events.c
            events = connection.execute(
                select(of.seq, of.id, of.incident_id, of.receiver, of.alertname, of.accepted_at, of.event).order_by(
                    of.seq
                )
            ).all()
            deliveries = connection.execute(select(tables.deliveries).order_by(tables.deliveries.c.seq)).all()
    finally:
        engine.dispose()
    times = undo_clock_steps([row.accepted_at for row in events])
    names = {row.incident_id: found[0] for row in events if (found := NAME.search(row.event.decode()))}
    return Outbox(
        [Event(row.seq, row.id, row.incident_id, "", frozenset(), ROUTES.get(row.receiver, ())) for row in events],
        [read_delivery(row) for row in deliveries],
        {row.id: _find_key(row.receipt) for row in deliveries if row.state == "delivered"},
        names,
        [
            Told(at, json.dumps(alert), alert["status"] == "firing")
            for at, row in zip(times, events, strict=True)
            if row.alertname == "KMSPathUnproven"
            for alert in json.loads(row.event)["alerts"]
        ],
    )


def undo_clock_steps(times: Sequence[float]) -> list[float]:
    """The right times of events in the order of their acceptance, by the clock that the day sets wrong.

    Only a step of that clock moves the time so far at once: the longest pause between two events is the 480 s in which
    the end of the day waits for them.
    """
    ahead, right = 0.0, []
    for earlier, later in pairwise([*times[:1], *times]):
        if abs(later - earlier) > 0.8 * CLOCK_STEP:
            ahead += CLOCK_STEP * round((later - earlier) / CLOCK_STEP)
        right.append(later - ahead)
    return right


def _find_key(receipt: str | None) -> str:
    found: dict[str, Any] = json.loads(receipt or "{}")
    return next((str(found[key]) for key in _RECEIPT_KEYS if key in found), "")


def check_intake(answered: Collection[str], outbox: Outbox, refusals: Mapping[int, int]) -> Line:
    stored = {event.id for event in outbox.events}
    lost = [event for event in answered if event not in stored]
    return Line(
        bool(answered) and not lost,
        f"intake: {len(answered)} webhooks answered 202, {len(lost)} of them not in the outbox{_examples(lost)}; "
        f"refused until then: {dict(+Counter(refusals)) or 'none'}",
    )


def check_channels(outbox: Outbox) -> Iterator[Line]:
    """Accepted = delivered + superseded + dead, on each channel."""
    states: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for delivery in outbox.deliveries:
        states[delivery.channel][delivery.state] += 1
    for channel, count in sorted(states.items()):
        ended = sum(count[state] for state in ("delivered", "superseded", "dead"))
        yield Line(
            count.total() == ended and count["delivered"] > 0,
            f"{channel}: {count.total()} accepted = {count['delivered']} delivered + {count['superseded']} superseded "
            f"+ {count['dead']} dead" + ("" if ended == count.total() else f"; {count.total() - ended} are left"),
        )


def check_promises(outbox: Outbox) -> Line:
    """The invariants of the outbox, and a delivery for each event on each channel of its route."""
    channels = {delivery.channel: Channel(()) for delivery in outbox.deliveries}
    found = list(check_stored(outbox.events, outbox.deliveries, channels))
    what = f"outbox: {len(outbox.events)} events, each on all channels of its route, {len(found)} rows that contradict"
    return Line(not found, what + _examples(found))


def check_receipts(outbox: Outbox, keys: Collection[str], forgotten: int) -> Line:
    missing = [delivery for delivery, key in outbox.receipts.items() if key not in keys]
    what = f"receipts: {len(outbox.receipts)}, {len(missing)} of them without a message at the provider"
    forgot = f"; the stand-ins forgot messages {forgotten} times" if forgotten else ""
    return Line(not missing and not forgotten, what + _examples(missing) + forgot)


def list_obstacles(happened: Iterable[Happened]) -> list[tuple[float, float]]:
    """From when to when a page may have had to wait."""
    return [(each.began, each.ended + RECOVERY_SECONDS) for each in happened if each.what in HINDERS_PAGES]


def measure_clear(episode: Episode, obstacles: Iterable[tuple[float, float]]) -> float:
    """The longest time in seconds for which an alert fired with nothing in its way."""
    assert episode.ended is not None
    at, longest = episode.began, 0.0
    for began, ended in sorted(obstacles):
        longest = max(longest, min(began, episode.ended) - at)
        at = max(at, ended)
    return max(longest, episode.ended - at)


def check_pages(
    episodes: Mapping[str, Sequence[Episode]], pages: Sequence[Page], outbox: Outbox, happened: Sequence[Happened]
) -> Iterator[Line]:
    """Every critical alert that fired long enough paged, and none paged twice.

    Args:
        episodes: of the critical alerts.
        pages: of PagerDuty, all of them.
        outbox: how many episodes of an alert the relay was told of.
        happened: what was in the way.
    """
    obstacles = list_obstacles(happened)
    expected = {
        name for name, all_ in episodes.items() if any(measure_clear(each, obstacles) >= CLEAR_SECONDS for each in all_)
    }
    paged = Counter(page.name for page in pages if page.name)
    told: defaultdict[str, set[int]] = defaultdict(set)
    for delivery in outbox.deliveries:
        if delivery.channel == "pagerduty" and (name := outbox.names.get(delivery.incident)):
            told[name].add(delivery.episode)
    missing = sorted(expected - set(paged))
    yield Line(
        bool(expected) and not missing,
        f"pages: {len(expected)} of {len(episodes)} critical alerts fired for {CLEAR_SECONDS:.0f} s with nothing in "
        f"the way, {len(missing)} of them paged nobody{_examples(missing)}",
    )
    twice = sorted(name for name, count in paged.items() if count > len(told[name]))
    yield Line(
        not twice,
        f"pages: {paged.total()} for {len(paged)} alerts, {len(twice)} alerts paged more often than they began"
        f"{_examples(twice)}",
    )
    left = [page.name or page.key for page in pages if page.resolved is None]
    yield Line(not left, f"pages: {len(left)} are open although everything is over{_examples(left)}")


def check_refusals(pages: Sequence[Page], happened: Sequence[Happened]) -> Line:
    """Each time that KMS refused, a page of the product's own rules came."""
    refused = [each for each in happened if each.what == "KMS refuses" and each.ended - each.began >= CLEAR_SECONDS]
    silent = [
        each
        for each in refused
        if not any(not page.name and each.began <= page.opened <= each.ended + RECOVERY_SECONDS for page in pages)
    ]
    return Line(not silent, f"KMS refused {len(refused)} times, {len(silent)} times without a page of the rules")


def check_disk(refusals: Mapping[int, int], happened: Sequence[Happened]) -> Line:
    """A relay that cannot write refused what it could not keep; else the disk was not full."""
    full = [each for each in happened if each.what == "disk full" and each.ended - each.began >= CLEAR_SECONDS]
    refused = refusals.get(503, 0)
    return Line(not full or refused > 0, f"disk: full {len(full)} times, {refused} webhooks answered 503")


def check_proofs(proofs: Sequence[Mapping[str, Any]] | None, unproven: Sequence[Told], now: float) -> Line:
    """No channel is unproven for longer than two intervals without an alert.

    Args:
        proofs: as `GET /api/proofs` has them; None where this relay proves no path.
        unproven: what the events of KMSPathUnproven say, and the mails of Alertmanager's.
        now: unix seconds.
    """
    if proofs is None:
        return Line(holds=True, what="proofs: this relay proves no path")
    begins = sorted(datetime.fromisoformat(proof["started"]).timestamp() for proof in proofs)
    proven: defaultdict[str, list[float]] = defaultdict(list)
    for proof in proofs:
        for channel in proof["channels"]:
            begun = [datetime.fromisoformat(proof["started"]).timestamp()] if channel["level"] else []
            proven[channel["channel"]] += begun
    gaps = [
        (channel, earlier, later)
        for channel, times in proven.items()
        for earlier, later in pairwise([begins[0], *sorted(times), now])
        if later - earlier > UNPROVEN_SECONDS
    ]
    silent = [
        f"{channel}, {later - earlier:.0f} s from {datetime.fromtimestamp(earlier, UTC):%H:%M:%S} UTC"
        for channel, earlier, later in gaps
        if not _is_told(channel, earlier, later, unproven)
    ]
    what = f"proofs: {len(begins)} on {len(proven)} channels, {len(gaps)} gaps, {len(silent)} without an alert"
    return Line(bool(begins) and not silent, what + _examples(silent))


def _is_told(channel: str, earlier: float, later: float, unproven: Iterable[Told]) -> bool:
    """Whether an alert tells of a gap between two times in unix seconds, or still fires from before it.

    An alert that fires on is not told again at once. One that was not repeated for so long is over: a killed
    Alertmanager never says so.
    """
    of_it = sorted(
        (
            told
            for told in unproven
            if any(what in told.text for what in _TELLS_OF_ALL)
            or ("KMSPathUnproven" in told.text and channel in told.text)
        ),
        key=lambda told: told.at,
    )
    before = [told for told in of_it if earlier - REPEAT_SECONDS <= told.at < earlier]
    meanwhile = [told for told in of_it if earlier <= told.at <= later + RECOVERY_SECONDS]
    return any(told.is_firing for told in [*before[-1:], *meanwhile])


def check_memory(server: str, limit: float, memory: Sequence[Memory], life: Sequence[Memory], day: float) -> Line:
    """A server stays under its limit, and is flat after the storm.

    Args:
        server: its name.
        limit: in MB.
        memory: all samples.
        life: those of its longest life after the storm.
        day: how long the day is, in seconds.
    """
    watched, peak = life[-1].at - life[0].at if life else 0.0, max(each.mb for each in memory)
    flat = f"was not watched: {watched:.0f} s after a storm, and {LEAST_WATCHED_SECONDS:.0f} s show growth"
    is_flat = day < SHORT_DAY_SECONDS
    if watched >= LEAST_WATCHED_SECONDS:
        slope, mean = measure_slope(life), sum(each.private_mb for each in life) / len(life)
        flat = f"{mean:.0f} MB, slope {slope:+.1f} MB/h over {watched / 60:.0f} min after the storm"
        is_flat = slope * watched / 3600 <= FLAT_SHARE * mean
    return Line(peak < limit and is_flat, f"{server}: own memory {flat}; peak {peak:.0f} of {limit:.0f} MB")


def _examples(found: Sequence[object]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - _EXAMPLES} more" if len(found) > _EXAMPLES else ""
    return ": " + "; ".join(map(str, found[:_EXAMPLES])) + more
