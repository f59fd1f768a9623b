"""The types that move through the relay, an event's identity, its JSON and its size. Frozen, no I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from typing import Final, Literal, NamedTuple

import msgspec

from shared.http import untrusted_json

OWN_SOURCE: Final = "keypulse"
"""Of every incident of the relay's own; no sender may use it."""
MAX_EPISODES: Final = 100
"""How many starts of an incident are counted."""
HASH_BYTES: Final = 8
"""Bytes of the hash of a fingerprint."""


def hash_fingerprint(fingerprint: str) -> bytes:
    """Stands for an alert that is not listed."""
    return hashlib.sha256(fingerprint.encode()).digest()[:HASH_BYTES]


def split_hashes(hashes: bytes) -> frozenset[bytes]:
    """Of `unlisted_firing` or `unlisted_resolved`."""
    return frozenset(hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES))


class Status(StrEnum):
    """Of an alert, or of a whole group."""

    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of a group, as Alertmanager sent it."""

    status: Status
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None = None
    """None while it fires."""
    generator_url: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One webhook: the state of one group at one moment."""

    source: str = ""
    """Which of several independent Alertmanagers sent it; empty if there is one."""
    receiver: str
    group_key: str
    status: Status
    alerts: tuple[Alert, ...]
    group_labels: Mapping[str, str]
    common_labels: Mapping[str, str]
    common_annotations: Mapping[str, str]
    external_url: str = ""
    truncated_alerts: int = 0
    """How many alerts Alertmanager cut off; over 0, `status` is not that of the whole group."""
    remark: str = ""
    """A remark of the relay's own; empty for an event of Alertmanager."""
    unlisted_firing: bytes = b""
    """The hashes of firing alerts' fingerprints that are not among `alerts`, because too many would be stored."""
    unlisted_resolved: bytes = b""
    """The same of resolved ones."""

    @property
    def unlisted_count(self) -> int:
        """How many alerts are not among `alerts`, also because Alertmanager cut them off."""
        return self.truncated_alerts + (len(self.unlisted_firing) + len(self.unlisted_resolved)) // HASH_BYTES


def collect_hashes(event: Event) -> frozenset[bytes]:
    """The hashes of the fingerprints of all its alerts, listed or not."""
    listed = (hash_fingerprint(alert.fingerprint) for alert in event.alerts)
    return split_hashes(event.unlisted_firing) | split_hashes(event.unlisted_resolved) | frozenset(listed)


@dataclass(frozen=True, slots=True)
class Links:
    """Where a person goes from an alert; each is http(s), or None if there is none."""

    runbook: str | None = None
    dashboard: str | None = None
    board: str | None = None
    """The exporter's board at the key or the service of the alert."""
    image: str | None = None
    """A picture that the alert brings: https, and from a host that `links.allow_hosts` names."""


class EscalationStep(NamedTuple):
    """Where an incident goes that nobody has acknowledged."""

    after: float
    """Seconds after its first delivery."""
    channels: tuple[str, ...]
    receiver: str = ""
    """Whose route has it, once it is stored with an incident: an event replaces the steps of its receiver alone."""


def encode_steps(steps: Sequence[EscalationStep]) -> str | None:
    """What an incident's row stores; None if there is none."""
    return json.dumps(steps) if steps else None


def decode_steps(steps: str | None) -> tuple[EscalationStep, ...]:
    return tuple(
        EscalationStep(after, tuple(channels), receiver) for after, channels, receiver in json.loads(steps or "[]")
    )


class RelatedIncident(NamedTuple):
    """Another open incident of the same environment and service."""

    incident_id: str
    title: str
    """Its title as messages show it, on one line."""
    since: datetime
    """When its episode started."""


class IncidentContext(NamedTuple):
    """What the outbox knows of an incident beside the event that is sent. It may differ from attempt to attempt."""

    started_at: datetime | None = None
    """When the episode started; None if that is not known."""
    episodes_in_7_days: int = 0
    """How many times the incident started in the last 7 days, this episode included; 0 if that is not known.

    At most `MAX_EPISODES`, which stands for as many or more.
    """
    related: tuple[RelatedIncident, ...] = ()
    """The oldest open incidents of the same environment and service."""
    related_count: int = 0
    """How many there are, the ones that `related` leaves out included."""
    previous_at: datetime | None = None
    """When the channel accepted the previous message of this episode; None if this message is its first."""
    previous_alerts: Mapping[str, Status] = {}
    """Each alert of that message, by fingerprint, with its status then; empty if that is not known."""
    acknowledged_by: str = ""
    """Who acknowledged the episode; empty while nobody has."""
    acknowledged_at: datetime | None = None
    escalated_to: tuple[str, ...] = ()
    """The channels that the episode was escalated to."""
    escalated_at: datetime | None = None
    """When the last of them was added."""


class Predecessor(NamedTuple):
    """A delivery that was merged into another one or given up, and may have arrived by itself."""

    delivery_id: str
    accepted_at: datetime
    progress: Mapping[str, str]
    """What the channel has done of it."""


class DeliveryTask(NamedTuple):
    """What a channel sees of a delivery, or of an edit.

    Before an attempt `event_json` becomes all its events merged into one. It crosses to the sending process as it is: a
    named tuple, since pickle takes a tenth of the time for one that it takes for a data class with slots.
    """

    delivery_id: str
    incident_id: str
    """A hash of source and groupKey: the same for every event of the group, for ever."""
    episode: int
    """How many times the incident has started; a firing event accepted after a resolved one begins the next episode."""
    channel: str
    accepted_at: datetime
    event_json: bytes = b""
    """The last event, or all events merged into one; empty for a message that no outbox holds."""
    events_size: int = 0
    """Bytes of all its events as they were accepted: how much work a message of them is."""
    first_event_seq: int = 0
    last_event_seq: int = 0
    """It delivers the events of its incident from the first to the last."""
    first_receipt: Mapping[str, str] | None = None
    """The receipt of this episode's first delivery on this channel, which a reply can refer to."""
    firing_undelivered: bool = False
    """Whether the incident is over, and this channel never got a message of its start."""
    remark: str = ""
    """What the relay itself adds for the reader, such as why this channel gets the message; usually empty."""
    age: float = 0.0
    """Seconds since `accepted_at`, by the clock that set it, which may differ from a provider's."""
    progress: Mapping[str, str] = {}
    """What the channel has done of it in earlier attempts."""
    maybe_sent: bool = False
    """Whether an earlier attempt may have arrived without anybody knowing."""
    predecessors: tuple[Predecessor, ...] = ()
    """Of the first message of an episode: what was merged or given up, and may have arrived, the newest first."""
    context: IncidentContext = IncidentContext()
    is_edit: bool = False
    """Whether the message that `first_receipt` names is edited to show the event, and nothing new is sent."""
    is_proof: bool = False
    """Whether the channel proves itself, and tells nobody anything; it has no event then."""
    members: tuple["DigestMember", ...] = ()
    """The deliveries of a digest, whose id `delivery_id` is then; empty for the message of one incident."""
    resolves_earlier: bool = False
    """Whether the provider may have the incident of an earlier episode open, and has to resolve it before this one."""
    acknowledgement: str = ""
    """The acknowledgement that the provider still has to get, named by its time; empty if there is none."""
    is_repeat: bool = False
    """Whether the channel accepted all its events before, so that only the acknowledgement is new."""
    attempt_ends: float = 0.0
    """When the attempt is cancelled at the latest, by CLOCK_MONOTONIC, which all processes of a machine share."""
    lease_ends: float = 0.0
    """Until when nobody else claims the delivery, by the same clock."""


class DigestMember(NamedTuple):
    """A delivery that a digest names."""

    task: DeliveryTask
    """With all its events merged, and cut to the worst alert."""
    is_named_only: bool
    """Whether it is critical: the digest names it, and its message is still to come."""
    counts: str = ""
    """How many alerts it has, such as `2 firing, 1 resolved`."""


class Claim(NamedTuple):
    """What the outbox hands out under a lease."""

    task: DeliveryTask
    lease_id: str
    """Proof of this claim; an outcome is recorded only under it."""
    attempt_number: int = 1
    is_breaker_trial: bool = False
    """Whether it is the one delivery that tries a channel behind its circuit breaker."""
    members: tuple["Claim", ...] = ()
    """The deliveries of a digest."""
    is_named_only: bool = False
    """Of a member: whether the digest names it and leaves it its own message."""


class ExcerptBlock(NamedTuple):
    """A part of a runbook's section, without mark-up."""

    kind: Literal["paragraph", "step", "code"]
    text: str


@dataclass(frozen=True, slots=True)
class RunbookExcerpt:
    """The first diagnosis steps of an alert's section in the runbook."""

    alertname: str
    blocks: tuple[ExcerptBlock, ...]
    is_truncated: bool
    """Whether the section goes on."""


class DigestEntry(NamedTuple):
    """One incident in a digest. Its texts are clean, on one line each, and not escaped."""

    title: str
    """The cause and its effect."""
    status: Status
    severity: str
    """One of `text.Severity`; empty if it has none of them."""
    counts: str
    """How many alerts, such as `2 firing, 1 resolved`."""
    service: str
    """The service with its environment, such as `ledger (production)`; empty if it has neither."""
    link: str | None
    """Where a person sees its alerts."""
    service_link: str | None
    """Where a person sees all alerts of the service."""
    receiver_link: str | None
    """Where a person sees all alerts of the receiver that the incident came to."""
    is_named_only: bool
    """Whether its message is still to come."""


Button = Literal["acknowledge", "silence"]
"""What a reader can press; `acknowledge` is both ways."""


class MessagePart(StrEnum):
    """What a message gets beside its event, if it can be had in time."""

    RUNBOOK = "runbook"
    CHART = "chart"


class PartOutcome(StrEnum):
    ADDED = "added"
    ABSENT = "absent"
    """There is none for this alert."""
    LATE = "late"
    FAILED = "failed"
    SKIPPED = "skipped"
    """There are too many at once, or one has failed a moment ago."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel sends: one event, or several merged, enriched. From attempt to attempt only `task` differs."""

    task: DeliveryTask
    event: Event
    links: tuple[Links, ...]
    """One for each alert of the event, in their order."""
    contacts: Mapping[str, str] = field(default_factory=dict)
    """The address of each role: 10 at most, each text of 200 characters at most."""
    title: str = ""
    """The cause and its effect on one line, from a team's template; empty: see `text.format_title`."""
    excerpt: RunbookExcerpt | None = None
    chart: bytes | None = None
    """A PNG of the alert's expression over the last hour; None if there is none."""
    current_values: Mapping[str, str] = field(default_factory=dict)
    """What the expression of an alert gives now, by fingerprint, such as `1.84 (fires if > 1)`; empty if unknown."""
    zone: tzinfo = UTC
    """The readers' time zone, of `messages.timezone`."""
    digest: tuple[DigestEntry, ...] = ()
    """The incidents of a digest, grouped by service; `event` is then of none of them, and has no alerts."""
    buttons: tuple[Button, ...] = ()
    """What readers can press, where the channel has buttons and the relay hears of it."""
    incident_url: str | None = None
    """Its page in the relay's console; None where the relay's own address is not known."""
    acknowledge_url: str | None = None
    """Where a reader without a login acknowledges it. Its last parameter is a secret; None where there is none."""


def build_incident_id(event: Event) -> str:
    """The same for every event of a group, for ever: a hash of source and groupKey.

    The receiver only chooses channels, so a renamed one goes on with its incidents.
    """
    return _hash_json([event.source, event.group_key])


def build_fingerprint(event: Event) -> str:
    """A hash of the alerts and their states; equal for events that repeat each other."""
    return f"{hash_alerts(event):064x}"


def hash_alerts(event: Event) -> int:
    """A hash of fingerprint, status and start of each alert, in any order: parts of an event add up to the whole.

    The end is no part of it, nor is anything else: the twins of an HA pair may differ there.
    """
    alerts = {(alert.fingerprint, alert.status.value, alert.starts_at.isoformat()) for alert in event.alerts}
    return sum(int(_hash_json(alert), 16) for alert in alerts) % 2**256


def find_alertname(event: Event) -> str:
    """What a person calls it; empty if the alerts of the group have several names and none is its own."""
    return event.group_labels.get("alertname") or event.common_labels.get("alertname", "")


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    return _ENCODER.encode(event)


def decode_event(event_json: bytes) -> Event:
    """The event that `encode_event` wrote. Raises ValueError if it is not one."""
    return untrusted_json.decode_json(_DECODER, event_json)


MAX_TEXT: Final = 16_384
"""Characters of one text."""
MAX_PAIRS: Final = 65_536
"""Characters of one alert's labels, or annotations."""
MAX_ALERTS_SIZE: Final = 524_288
"""Characters of all alerts that are listed; at least one is."""
MAX_URL: Final = 8_192
"""Characters of an address; a longer one is no link for anybody."""
_ALERT_OVERHEAD: Final = 200
"""What an alert has beside its texts, as if it were characters."""
_IMPORTANT_KEYS: Final = frozenset(
    {"alertname", "env", "service", "severity", "title", "summary", "description", "runbook_url", "dashboard_url"}
)


def limit_size(event: Event) -> Event:
    """The event with as many of its alerts as fit, firing and critical ones first; of the others it keeps digests.

    The outbox stores it beside the whole webhook, so that merging, comparing and delivering never need more than about
    a megabyte for one event. No channel would show what is cut off: each has narrower limits.
    """
    alerts = tuple(map(_limit_alert, event.alerts))
    if sum(map(_measure_alert, alerts)) <= MAX_ALERTS_SIZE:
        return _build_limited(event, alerts, {})
    by_urgency = sorted(
        alerts, key=lambda alert: (alert.status is Status.RESOLVED, alert.labels.get("severity") != "critical")
    )
    size_left, fit = MAX_ALERTS_SIZE, 0
    for alert in by_urgency:
        size_left -= _measure_alert(alert)
        if size_left < 0 and fit:
            break
        fit += 1
    unlisted: dict[Status, list[bytes]] = {Status.FIRING: [], Status.RESOLVED: []}
    for alert in by_urgency[fit:]:
        unlisted[alert.status].append(hash_fingerprint(alert.fingerprint))
    return _build_limited(event, tuple(by_urgency[:fit]), {status: b"".join(each) for status, each in unlisted.items()})


def _build_limited(event: Event, alerts: tuple[Alert, ...], unlisted_hashes: Mapping[Status, bytes]) -> Event:
    return replace(
        event,
        alerts=alerts,
        group_labels=_limit_pairs(event.group_labels),
        common_labels=_limit_pairs(event.common_labels),
        common_annotations=_limit_pairs(event.common_annotations),
        external_url=_limit_url(event.external_url),
        unlisted_firing=event.unlisted_firing + unlisted_hashes.get(Status.FIRING, b""),
        unlisted_resolved=event.unlisted_resolved + unlisted_hashes.get(Status.RESOLVED, b""),
    )


def _limit_alert(alert: Alert) -> Alert:
    if _measure_alert(alert) <= MAX_TEXT:  # as almost always: then none of its parts is over its bound
        return alert
    return replace(
        alert,
        labels=_limit_pairs(alert.labels),
        annotations=_limit_pairs(alert.annotations),
        generator_url=_limit_url(alert.generator_url),
    )


def _measure_alert(alert: Alert) -> int:
    return _ALERT_OVERHEAD + len(alert.generator_url) + _measure_pairs(alert.labels) + _measure_pairs(alert.annotations)


def _measure_pairs(pairs: Mapping[str, str]) -> int:
    return sum(map(len, pairs)) + sum(map(len, pairs.values()))


def _limit_pairs(pairs: Mapping[str, str]) -> Mapping[str, str]:
    if _measure_pairs(pairs) <= MAX_TEXT:
        return pairs
    limited: dict[str, str] = {}
    size_left = MAX_PAIRS
    for key in sorted(pairs, key=lambda key: key not in _IMPORTANT_KEYS):
        size_left -= min(len(key), MAX_TEXT) + min(len(pairs[key]), MAX_TEXT)
        if size_left < 0:
            break
        limited[_truncate(key)] = _truncate(pairs[key])
    return limited


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _limit_url(url: str) -> str:
    return url if len(url) <= MAX_URL else ""
