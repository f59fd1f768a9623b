"""A month of incidents in an outbox, written straight into its tables: accepting 100,000 deliveries would take minutes.

What is there is consistent: a critical incident went to four channels, another one to two, and `audit-hook` got every
event. A few channels refused, timed out or were down; a few messages were merged, given up, or still wait (due in an
hour, so that no relay that is started meanwhile sends them).
"""

import asyncio
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from sqlalchemy import Table, func, insert, select, text

from services.relay.model import Event, Status, build_fingerprint, build_incident_id, encode_event
from services.relay.outbox.context import build_service_id, build_title
from services.relay.outbox.store import BulkStatement, Store, Transaction
from services.relay.outbox.tables import attempts, deliveries, edits, events, incidents
from shared.config.settings import Address
from tests.relay.channels.examples import SECRET, example, message, settings

DAYS: Final = 29.0
"""Over how many days: the usual retention prunes nothing of it."""
CRITICAL: Final = ("slack-critical", "email-secops", "email-oncall", "pagerduty")
OTHERS: Final = ("slack-security", "email-secops")
UNMERGED: Final = "audit-hook"
KINDS: Final[Mapping[str, str]] = {
    "slack-critical": "slack",
    "slack-security": "slack",
    "email-secops": "email",
    "email-oncall": "email",
    "pagerduty": "pagerduty",
    UNMERGED: "webhook",
}
"""The channels, each with its kind."""
SERVICES: Final = ("backend", "ledger", "vault", "archive", "payments", "billing", "search", "mail")
ALERTS: Final[Mapping[str, tuple[str, str]]] = {
    "KMSCryptoModeNotKMS": ("critical", "{service} wraps new data keys with a local key"),
    "KMSCryptoNotReady": ("critical", "{service} can neither encrypt nor decrypt"),
    "KMSProbeFailing": ("critical", "permission_denied: {service} cannot encrypt with {target}"),
    "KMSCanaryLost": ("critical", "key_disabled: data of an older version of {target} cannot be decrypted"),
    "KMSHighLatency": ("warning", "{service} waits over 1 s for {target}"),
    "KMSDecryptionErrorsBurst": ("warning", "{service} cannot decrypt many records"),
    "KMSRotationOverdue": ("warning", "the rotation of {target} is overdue"),
}
"""The alerts, each with its severity and title."""
_FAILURES: Final = (
    ("timeout", "no answer within 10 s"),
    ("rate_limited", "Slack answered ratelimited"),
    ("server_error", "HTTP 503 Service Unavailable"),
    ("connection", "the connection was refused"),
)
_REFUSED: Final = ("rejected", "Slack answered invalid_blocks")
_REPLIES: Final = {
    "slack": 'chat.postMessage: {"ok": true, "channel": "C0SECURITY", "ts": "1790000000.000100"}',
    "email": "250 2.0.0 Ok: queued as 4F1C2",
    "pagerduty": "HTTP 202 Event processed",
    "webhook": "HTTP 200 OK",
}
OPEN_COUNT: Final = 12
"""How many incidents fire, at most."""
_CHUNK: Final = 5_000
_STARTS: Final = b"2001-01-01T01:01:01Z"
_ENDS: Final = b"2002-02-02T02:02:02Z"
_NO_INCIDENT: Final[dict[str, Any]] = dict.fromkeys(column.name for column in incidents.c) | {
    "earlier_events": "[]",
    "service": "",
}
_NO_DELIVERY: Final[dict[str, Any]] = dict.fromkeys(column.name for column in deliveries.c) | {
    "attempts": 0,
    "maybe_sent": 0,
    "stand_in": 0,
}
_NO_EDIT: Final[dict[str, Any]] = dict.fromkeys(column.name for column in edits.c)


@dataclass(frozen=True, slots=True)
class SeededIncident:
    """One that is in the outbox."""

    id: str
    alertname: str
    service: str
    severity: str
    channels: tuple[str, ...]
    is_open: bool


@dataclass(frozen=True, slots=True)
class SeededHistory:
    """What is in the outbox."""

    incidents: Sequence[SeededIncident]
    delivery_count: int
    newest_by_state: Mapping[str, str]
    """The id of the newest delivery in each state."""


class _Step(NamedTuple):
    """An event of an episode."""

    at: float
    incident: int
    episode: int
    status: Status


@dataclass(slots=True)
class _Rows:
    """Rows by table, each a mapping of all columns."""

    events: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    edits: dict[tuple[str, int, str], dict[str, Any]] = field(default_factory=dict)


async def seed_history(store: Store, delivery_count: int = 100_000, *, seed: int = 16) -> SeededHistory:
    """Adds about so many deliveries, the newest of them of now.

    Args:
        store: an outbox without incidents of the same seed.
        delivery_count: how many.
        seed: the same gives the same incidents.
    """
    now = await store.run(lambda transaction: transaction.now)
    first = await store.read(
        lambda connection: [
            connection.execute(select(func.coalesce(func.max(table.c.seq), 0))).scalar_one() + 1
            for table in (events, deliveries)
        ]
    )
    history = await asyncio.to_thread(_History, delivery_count, now, Random(seed), *first)  # noqa: S311
    for table, rows in history.list_rows():
        for start in range(0, len(rows), _CHUNK):
            await store.run(partial(_insert, table=table, rows=rows[start : start + _CHUNK]))
    await store.run(_continue_sequences)
    return history.summarize()


class _Incident:
    """What is the same for all events of an incident."""

    def __init__(self, number: int, random: Random) -> None:
        alertname = list(ALERTS)[number % len(ALERTS)]
        self.severity, title = ALERTS[alertname]
        service = random.choice(SERVICES)
        target = f"{service}-kek-{number:05d}"
        self.labels = {"alertname": alertname, "env": "production", "service": service, "target": target}
        self.channels = (*(CRITICAL if self.severity == "critical" else OTHERS), UNMERGED)
        event = _build_event(self.labels, self.severity, title.format(service=service, target=target))
        self.id, self.title = build_incident_id(event), build_title(event)
        self.service_id, self.receiver = build_service_id(event), event.receiver
        events = {status: _end(event) if status is Status.RESOLVED else event for status in Status}
        self.fingerprints = {status: build_fingerprint(each) for status, each in events.items()}
        self._encoded = {status: (encode_event(each), _build_body(each)) for status, each in events.items()}
        self.row: dict[str, Any] = {}
        self.starts: list[float] = []
        self.latest: dict[str, dict[str, Any]] = {}
        """Its latest delivery on each channel."""

    def encode(self, status: Status, started_at: float, at: float) -> tuple[bytes, bytes]:
        """An event and the body of its webhook."""
        times = [
            datetime.fromtimestamp(each, UTC).isoformat().replace("+00:00", "Z").encode() for each in (started_at, at)
        ]
        event, body = (each.replace(_STARTS, times[0]).replace(_ENDS, times[1]) for each in self._encoded[status])
        return event, body


class _History:
    def __init__(self, count: int, now: float, random: Random, first_event: int, first_delivery: int) -> None:
        self._now, self._random = now, random
        self._next_event, self._next_delivery = first_event, first_delivery
        self._rows = _Rows()
        self._incidents = [_Incident(number, random) for number in range(max(len(ALERTS), count // 25))]
        for step in sorted(self._plan(count)):
            self._add_event(step)
        self._incidents = [each for each in self._incidents if each.row]
        for incident in self._incidents:
            for row in incident.latest.values():
                if row["state"] == "superseded":  # nothing came after it
                    self._deliver(row, incident)
        self._let_some_wait()

    def summarize(self) -> SeededHistory:
        """What it has."""
        found = [
            SeededIncident(
                each.id,
                each.labels["alertname"],
                each.labels["service"],
                each.severity,
                each.channels,
                bool(each.row["is_open"]),
            )
            for each in self._incidents
        ]
        newest = {row["state"]: row["id"] for row in self._rows.deliveries}
        return SeededHistory(found, len(self._rows.deliveries), newest)

    def list_rows(self) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
        """In the order in which they may be inserted."""
        yield incidents, [each.row for each in self._incidents]
        yield events, self._rows.events
        yield deliveries, self._rows.deliveries
        yield attempts, self._rows.attempts
        yield edits, list(self._rows.edits.values())

    def _plan(self, count: int) -> Iterator[_Step]:
        """Every event: each incident has episodes with a beginning, perhaps a repeat, and an end."""
        expected = 0
        episodes = dict.fromkeys(range(len(self._incidents)), 0)
        ends = dict.fromkeys(episodes, 0.0)
        mean = 2.28 * sum(len(each.channels) for each in self._incidents) / len(self._incidents)
        for at in (self._now - self._random.random() * DAYS * 86400 for _ in range(int(count / mean))):
            number = self._random.randrange(len(self._incidents))
            if ends[number]:
                at = ends[number] + self._random.expovariate(1 / 86400.0)  # noqa: PLW2901
                if at > self._now:
                    continue
            episodes[number] += 1
            length = self._random.expovariate(1 / 1800.0)
            ends[number] = at + length
            moments = [at, *([at + length / 2] if self._random.random() < 0.4 else [])]
            steps = [_Step(moment, number, episodes[number], Status.FIRING) for moment in moments]
            steps.append(_Step(ends[number], number, episodes[number], Status.RESOLVED))
            steps = [step for step in steps if step.at < self._now]
            expected += len(steps) * len(self._incidents[number].channels)
            yield from steps
        free = [number for number, end in ends.items() if end < self._now - 120]
        for number in self._random.sample(free, k=min(len(free), OPEN_COUNT)):  # a few fire since a moment ago
            yield _Step(self._now - self._random.random() * 60, number, episodes[number] + 1, Status.FIRING)

    def _add_event(self, step: _Step) -> None:
        incident = self._incidents[step.incident]
        seq, self._next_event = self._next_event, self._next_event + 1
        row = incident.row
        if not row or row["episode"] != step.episode:
            incident.starts.append(step.at)
            is_acknowledged = self._random.random() < 0.5
            begun: dict[str, Any] = {
                "id": incident.id,
                "episode": step.episode,
                "severity": incident.severity,
                "first_event_seq": seq,
                "service_id": incident.service_id,
                "title": incident.title,
                "started_at": step.at,
                "episode_starts": json.dumps(incident.starts),
                "acknowledged_by": "alice" if is_acknowledged else None,
                "acknowledged_at": step.at + 90.0 if is_acknowledged else None,
                "acknowledged_via": "slack" if is_acknowledged else None,
                **{name: incident.labels[name] for name in ("alertname", "service") if name in _NO_INCIDENT},
            }
            row = incident.row = _NO_INCIDENT | begun
        row |= {"is_open": int(step.status is Status.FIRING), "latest_event_seq": seq}
        event, body = incident.encode(step.status, row["started_at"], step.at)
        self._rows.events.append(
            {
                "seq": seq,
                "id": self._new_id(),
                "incident_id": incident.id,
                "receiver": incident.receiver,
                "alertname": incident.labels["alertname"],
                "status": step.status.value,
                "fingerprint": incident.fingerprints[step.status],
                "accepted_at": step.at,
                "event": event,
                "body": body,
            }
        )
        for channel in incident.channels:
            self._add_delivery(step, incident, channel, seq)

    def _add_delivery(self, step: _Step, incident: _Incident, channel: str, event_seq: int) -> None:
        seq, self._next_delivery = self._next_delivery, self._next_delivery + 1
        row = _NO_DELIVERY | {
            "seq": seq,
            "id": self._new_id(),
            "event_seq": event_seq,
            "first_event_seq": event_seq,
            "incident_id": incident.id,
            "episode": step.episode,
            "channel": channel,
            "accepted_at": step.at,
            "oldest_accepted_at": step.at,
            "due_at": step.at,
            "payload": _render(KINDS[channel], incident.labels["alertname"], step.status),
        }
        before = incident.latest.get(channel)
        if before is not None and before["state"] == "superseded":
            before |= {"superseded_by": row["id"], "finished_at": step.at, "payload": None}
            row |= {"first_event_seq": before["first_event_seq"], "oldest_accepted_at": before["oldest_accepted_at"]}
        incident.latest[channel] = row
        self._rows.deliveries.append(row)
        draw = self._random.random()
        if draw < 0.03 and channel != UNMERGED:
            row["state"] = "superseded"  # by the next one
        elif draw < 0.04:
            self._try(row, *_REFUSED, at=step.at + 0.2)
            row |= {"state": "dead", "finished_at": step.at + 0.4}
        else:
            self._deliver(row, incident)

    def _deliver(self, row: dict[str, Any], incident: _Incident) -> None:
        kind = KINDS[row["channel"]]
        at = row["accepted_at"] + self._random.uniform(0.05, 0.6)
        if self._random.random() < 0.04:
            for number in range(self._random.randint(1, 3)):
                self._try(row, *self._random.choice(_FAILURES), at=at)
                at += 2.0 ** (number + 1)
        self._try(row, "ok", _REPLIES[kind], at=at)
        row |= {
            "state": "delivered",
            "finished_at": min(at + 0.3, self._now),
            "receipt": _build_receipt(kind, row["id"], row["accepted_at"], incident.id),
        }
        if kind == "slack":
            self._add_edit(row)

    def _add_edit(self, row: Mapping[str, Any]) -> None:
        """The first message of an episode shows every later change."""
        key = (row["incident_id"], row["episode"], row["channel"])
        if key not in self._rows.edits:
            about: dict[str, Any] = dict(zip(("incident_id", "episode", "channel"), key, strict=True))
            times: dict[str, Any] = dict.fromkeys(("requested_at", "due_at"), row["finished_at"])
            counts = {"wanted": 0, "shown": 0, "attempts": 0}
            self._rows.edits[key] = _NO_EDIT | about | times | counts | {"delivery_seq": row["seq"]}
        else:
            self._rows.edits[key]["wanted"] += 1
            self._rows.edits[key]["shown"] += 1

    def _try(self, row: dict[str, Any], reason: str, detail: str, *, at: float) -> None:
        row["attempts"] += 1
        row["reason"] = reason
        self._rows.attempts.append(
            {
                "delivery_seq": row["seq"],
                "number": row["attempts"],
                "started_at": at,
                "seconds": self._random.uniform(0.05, 0.4),
                "reason": reason,
                "detail": detail,
            }
        )

    def _let_some_wait(self) -> None:
        """The newest deliveries of a few incidents that fire are tried again in an hour."""
        edited = {row["delivery_seq"] for row in self._rows.edits.values()}
        waits = {}
        for incident in self._incidents:
            for row in incident.latest.values() if incident.row["is_open"] else ():
                if row["state"] == "delivered" and row["channel"] != UNMERGED and row["seq"] not in edited:
                    row |= {"state": "retrying", "finished_at": None, "receipt": None, "reason": "timeout"}
                    row |= {"due_at": self._now + 3600.0}
                    waits[row["seq"], row["attempts"]] = row
                    break
        for attempt in self._rows.attempts:
            if (attempt["delivery_seq"], attempt["number"]) in waits:
                attempt |= {"reason": "timeout", "detail": "no answer within 10 s"}

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


def _build_event(labels: Mapping[str, str], severity: str, title: str) -> Event:
    """One that fires."""
    event = message("01-firing-1").event
    alert = replace(
        event.alerts[0],
        labels={**labels, "severity": severity},
        annotations={**event.alerts[0].annotations, "title": title},
        starts_at=datetime.fromisoformat(_STARTS.decode()),
        fingerprint=f"{labels['target']}",
    )
    group = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return replace(
        event,
        receiver="kms-critical" if severity == "critical" else "kms-security",
        group_key=f'{{}}/{{alertname=~"^KMS.*"}}:{{{group}}}',
        alerts=(alert,),
        group_labels=labels,
        common_labels=alert.labels,
        common_annotations=alert.annotations,
    )


def _end(event: Event) -> Event:
    ended = replace(event.alerts[0], status=Status.RESOLVED, ends_at=datetime.fromisoformat(_ENDS.decode()))
    return replace(event, status=Status.RESOLVED, alerts=(ended,))


def _build_body(event: Event) -> bytes:
    """As long as a webhook is."""
    alert = event.alerts[0]
    body = {
        "version": "4",
        "groupKey": event.group_key,
        "status": event.status,
        "receiver": event.receiver,
        "groupLabels": dict(event.group_labels),
        "commonLabels": dict(event.common_labels),
        "commonAnnotations": dict(event.common_annotations),
        "externalURL": event.external_url,
        "truncatedAlerts": 0,
        "alerts": [
            {
                "status": alert.status,
                "labels": dict(alert.labels),
                "annotations": dict(alert.annotations),
                "startsAt": alert.starts_at.isoformat(),
                "endsAt": alert.ends_at.isoformat() if alert.ends_at else "0001-01-01T00:00:00Z",
                "generatorURL": alert.generator_url,
                "fingerprint": alert.fingerprint,
            }
        ],
    }
    return json.dumps(body).encode()


def _build_receipt(kind: str, delivery_id: str, at: float, incident_id: str) -> str:
    match kind:  # not by `json`, which takes half of the time of everything here
        case "slack":
            return f'{{"channel": "C0SECURITY", "ts": "{at:.6f}"}}'
        case "email":
            return f'{{"message_id": "<{delivery_id}@keypulse>", "answer": "{_REPLIES[kind]}"}}'
        case "pagerduty":
            return f'{{"dedup_key": "{incident_id}", "status": "success"}}'
        case _:
            return '{"status": "200"}'


@cache
def _render(kind: str, alertname: str, status: Status) -> bytes:
    """What the channel sends of such an alert, as it is stored; that of another service is as long."""
    severity, title = ALERTS[alertname]
    labels = {"alertname": alertname, "env": "production", "service": "ledger", "target": "ledger-kek"}
    event = _build_event(labels, severity, title.format(**labels))
    with TemporaryDirectory() as folder:
        secret = Path(folder, "secret")
        secret.write_text(SECRET)
        channel = settings(example(kind, secret, Address("127.0.0.1", 9))).connect(5)
        payload = channel.render_payload(message(_end(event) if status is Status.RESOLVED else event))
    return zlib.compress(payload.encode(), 1)


def _insert(transaction: Transaction, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        columns = [column.name for column in table.c]
        BulkStatement(insert(table), columns).execute(transaction.connection, rows)


def _continue_sequences(transaction: Transaction) -> None:
    """PostgreSQL counts on by itself only what it has numbered."""
    if transaction.connection.dialect.name == "postgresql":
        for table in ("events", "deliveries"):
            newest = f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'), (SELECT max(seq) FROM {table}))"  # noqa: S608
            transaction.connection.execute(text(newest))
