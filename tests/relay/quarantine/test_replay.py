"""A webhook of the quarantine is accepted after all: once, by the rules of the intake, and as a person confirmed it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select, update

from services.relay.config import RelaySettings
from services.relay.intake.acceptance import Acceptance
from services.relay.intake.routing import RouteSettings
from services.relay.intake.webhook import MalformedWebhookError, parse_webhook
from services.relay.metrics import Metrics
from services.relay.outbox import quarantine
from services.relay.outbox.accept import AcceptResult
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.quarantine import AlreadyReplayedError, UnknownEntryError
from services.relay.outbox.retention import ByteLimit
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import events
from services.relay.outbox.tables import quarantine as table
from services.relay.quarantine.replay import (
    IncidentStatus,
    NotConfirmedError,
    ReplayPreview,
    ReplayRefusedError,
    Replays,
)
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import watch
from tests.relay.served_relay import webhook_of
from tests.stores import each_store

CHANNELS: dict[str, Any] = dict.fromkeys(("slack", "pager", "boss"))
RULES = RelaySettings.model_construct(
    routes=(
        RouteSettings(
            receiver="kms-critical", channels=("slack", "pager"), escalate=({"after": "10m", "channels": ("boss",)},)
        ),
    ),
    default_channels=("slack",),
    channels=CHANNELS,
    watchdogs=(watch("Watchdog", "60s", "slack"),),
)
HOUR = 3600.0


class Replica(NamedTuple):
    """A relay, as far as it replays."""

    store: Store
    replays: Replays
    woken: list[str]

    async def refuse(self, body: bytes, *, source: str = "eu", age: float = 0.0) -> quarantine.QuarantineEntry:
        """An entry of the quarantine."""
        await quarantine.quarantine_webhook(self.store, body, source=source, code=400, reason="version: missing")
        newest = (await quarantine.list_entries(self.store))[0]
        old = update(table).where(table.c.seq == newest.id).values(received_at=newest.received_at - age)
        await self.store.run(lambda transaction: transaction.connection.execute(old).close())
        return await quarantine.read_entry(self.store, newest.id)

    async def accept(self, body: bytes) -> None:
        """A webhook that was just sent."""
        parsed = parse_webhook(body, "eu", (), RULES.routes)
        assert parsed.incoming is not None
        await self.replays._acceptance.commit(parsed.incoming, parsed.route)

    async def replay(self, entry: quarantine.QuarantineEntry, body: bytes, code: str | None) -> AcceptResult:
        return await self.replays.replay(entry, body, code, who="alice", peer="10.0.0.1")

    async def count_events(self) -> int:
        query = select(func.count()).select_from(events)
        return await self.store.read(lambda connection: connection.execute(query).scalar_one())


def build_replica(store: Store) -> Replica:
    woken: list[str] = []
    metrics = Metrics(CollectorRegistry())
    return Replica(store, Replays(Acceptance(store, RULES, metrics, woken.extend, ByteLimit())), woken)


@pytest.fixture
async def relay(database: DatabaseUrl) -> AsyncIterator[Replica]:
    async with open_store(database, time.time) as store:
        yield build_replica(store)


@each_store
async def test_a_repaired_webhook_is_accepted_once_whichever_replicas_are_asked(
    relay: Replica, database: DatabaseUrl
) -> None:
    async with open_store(database, time.time) as other_store:
        other = build_replica(other_store)
        entry, body = await relay.refuse(b"{}"), webhook_of()
        preview = await other.replays.preview(entry, body)
        assert preview.incident_status is IncidentStatus.UNKNOWN
        assert (preview.source, preview.receiver, preview.status) == ("eu", "kms-critical", "firing")
        assert (preview.channels, preview.escalation[0].channels) == (("slack", "pager"), ("boss",))
        assert (preview.is_duplicate, preview.warnings, preview.alert_count) == (False, (), 1)

        both = (relay.replay(entry, body, preview.code), other.replay(entry, body, preview.code))
        ended = await asyncio.gather(*both, return_exceptions=True)
        (accepted,) = [each for each in ended if isinstance(each, AcceptResult)]
        (refused,) = [each for each in ended if not isinstance(each, AcceptResult)]
        assert accepted.channels == ("slack", "pager")
        assert isinstance(refused, AlreadyReplayedError)
        assert str(refused) == "it was replayed already, by alice"

    stored = await quarantine.read_entry(relay.store, entry.id)
    assert (stored.replayed_by, stored.incident_id, stored.replayed_at is None) == ("alice", preview.incident_id, False)
    assert await relay.count_events() == 1
    audit, _ = await OutboxAudit(relay.store).list_entries(9, None)
    assert [(each.who, each.peer, each.action, each.on) for each in audit] == [
        ("alice", "10.0.0.1", "replay", f"quarantine {entry.id}")
    ]
    with pytest.raises(AlreadyReplayedError):
        await relay.replays.preview(stored, body)


async def test_it_repeats_what_was_accepted_and_nobody_is_notified(relay: Replica) -> None:
    entry = await relay.refuse(b"{}")
    await relay.accept(webhook_of())
    preview = await relay.replays.preview(entry, webhook_of())
    assert (preview.is_duplicate, preview.channels) == (True, ())
    relay.woken.clear()
    assert (await relay.replay(entry, webhook_of(), preview.code)).is_duplicate
    assert (relay.woken, await relay.count_events()) == ([], 1)
    assert (await quarantine.read_entry(relay.store, entry.id)).replayed_by == "alice"


async def test_an_old_webhook_comes_with_a_warning_of_what_it_would_do(relay: Replica) -> None:
    async def warn(entry: quarantine.QuarantineEntry, status: str) -> ReplayPreview:
        return await relay.replays.preview(entry, webhook_of(status))

    newer = "A newer webhook of this incident was accepted since: this one shows an older state."
    check = "Check in Alertmanager whether these alerts still fire: if not, nothing may send their end."
    old = await relay.refuse(b"{}", age=HOUR)
    assert (await warn(old, "firing")).warnings == (check,)
    assert (await warn(old, "resolved")).warnings == ("Nobody was notified of its start: only its end would be sent.",)
    await relay.accept(webhook_of())
    assert (await warn(old, "resolved")).warnings == (
        newer,
        "The incident fires by the newer webhook. This would resolve it.",
    )
    await relay.accept(webhook_of("resolved"))
    stale = await warn(old, "firing")
    assert (stale.incident_status, stale.is_duplicate) == (IncidentStatus.RESOLVED, False)
    assert stale.warnings == (
        newer,
        "The incident is resolved. This would open it again and notify people as of a new one.",
        check,
    )


async def test_only_what_a_person_has_read_is_done(relay: Replica) -> None:
    entry, body = await relay.refuse(b"{}", age=HOUR), webhook_of()
    await relay.accept(webhook_of(group="other"))
    preview = await relay.replays.preview(entry, body)
    await relay.accept(webhook_of("resolved"))  # meanwhile it has ended
    for code in (None, "wrong", preview.code):
        with pytest.raises(NotConfirmedError) as refused:
            await relay.replay(entry, body, code)
    assert refused.value.preview.incident_status is IncidentStatus.RESOLVED
    with pytest.raises(NotConfirmedError):
        await relay.replay(entry, webhook_of(truncatedAlerts=1), refused.value.preview.code)  # another body
    assert await relay.count_events() == 2
    assert (await quarantine.read_entry(relay.store, entry.id)).replayed_at is None
    assert (await OutboxAudit(relay.store).list_entries(9, None))[0] == []
    assert not (await relay.replay(entry, body, refused.value.preview.code)).is_duplicate


async def test_what_cannot_be_accepted_says_where_and_why(relay: Replica) -> None:
    entry = await relay.refuse(b"{}")
    wrong = json.loads(webhook_of()) | {"version": "3"}
    with pytest.raises(MalformedWebhookError, match="version: expected '4'"):
        await relay.replays.preview(entry, json.dumps(wrong).encode())
    heartbeat = json.loads(webhook_of())
    heartbeat["alerts"][0]["labels"] = {"alertname": "Watchdog"}
    with pytest.raises(ReplayRefusedError, match="heartbeats or proofs alone"):
        await relay.replays.preview(entry, json.dumps(heartbeat).encode())
    both = json.loads(webhook_of())
    both["alerts"].append({**both["alerts"][0], "labels": {"alertname": "Watchdog"}, "fingerprint": "dog"})
    mixed = await relay.replays.preview(entry, json.dumps(both).encode())
    assert (mixed.ignored_heartbeats, mixed.alert_count) == (("Watchdog",), 1)
    with pytest.raises(ReplayRefusedError, match="expected at most"):
        await relay.replays.preview(entry, b" " * (quarantine.MAX_BODY_BYTES + 1))
    cut = await relay.refuse(b'{"' + b"x" * quarantine.MAX_BODY_BYTES)
    body = await quarantine.read_body(relay.store, cut.id)
    with pytest.raises(MalformedWebhookError, match="only the first 512 KiB are kept"):
        await relay.replays.preview(cut, body or b"")
    own = await relay.refuse(webhook_of(), source="keypulse")
    with pytest.raises(MalformedWebhookError, match="source: expected"):
        await relay.replays.preview(own, webhook_of())

    preview = await relay.replays.preview(entry, webhook_of())
    deletion = table.delete().where(table.c.seq == entry.id)
    await relay.store.run(lambda transaction: transaction.connection.execute(deletion).close())
    with pytest.raises(UnknownEntryError):
        await relay.replay(entry, webhook_of(), preview.code)
    assert await relay.count_events() == 0
