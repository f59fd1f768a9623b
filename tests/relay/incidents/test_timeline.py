"""A timeline is what happened, in its order, with the seconds between the hops; a post-mortem of it is only text."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt

from services.relay.acknowledgement.store import acknowledge
from services.relay.apis import FailureHistory, KeyFailure, UnixTime
from services.relay.deliveries.retries import send_elsewhere
from services.relay.delivery.message import LinkRules
from services.relay.incidents.episode_history import EpisodeHistory, EventRecord, read_episode
from services.relay.incidents.post_mortem import IncidentView, build_details, build_markdown
from services.relay.incidents.queries import read_incident
from services.relay.incidents.timeline import EntryKind, Timeline, build_timeline, decode_record
from services.relay.model import Alert, Event, Status, encode_event
from services.relay.outbox.audit import Actor
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.http.json_api import format_json_time
from shared.sql import database_url
from tests.relay.outbox.actions import accept, claim_one, end_attempt, let_pass
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.served_relay import event_of

START = 1000.0
HOSTILE = (
    "| [x](javascript:alert(1)) <img src=x onerror=alert(1)> `a` **b** @team https://evil.example www.evil.example"
)


def alert_of(name: str, status: Status = Status.FIRING, starts: float = START, **annotations: str) -> Alert:
    at = datetime.fromtimestamp(starts, UTC)
    labels = {"alertname": "KMSProbeFailing", "service": "backend", "target": name, "severity": "critical"}
    ends_at = datetime.fromtimestamp(starts + 500, UTC) if status is Status.RESOLVED else None
    return Alert(status, labels, annotations, at, ends_at, "http://prometheus/graph", name)


def event_with(*alerts: Alert, **changes: Any) -> Event:
    status = Status.FIRING if any(each.status is Status.FIRING for each in alerts) else Status.RESOLVED
    return replace(event_of(), alerts=alerts, status=status, **changes)


def record(seq: int, event: Event, at: float) -> EventRecord:
    encoded = encode_event(event)
    return EventRecord(seq, f"e{seq}", event.status, at, encoded, len(encoded), is_own=False)


def history_of(*records: EventRecord, **changes: Any) -> EpisodeHistory:
    empty = ("deliveries", "attempts", "actions", "silences", "edits", "channels", "first_receipts", "last_receipts")
    history = EpisodeHistory(
        episode=1,
        is_current=True,
        is_over=records[-1].status == "resolved",
        started_at=records[0].accepted_at,
        pruned_up_to=None,
        first_event=records[0],
        last_event=records[-1],
        event_count=len(records),
        events=records,
        event_before=None,
        earlier=None,
        has_later=False,
        is_cut=False,
        episodes=(),
        **dict.fromkeys(empty, ()),
    )
    return replace(history, **changes)


def list_entries(timeline: Timeline) -> list[tuple[str, str]]:
    return [(each.kind.value, each.text) for each in timeline.entries]


@pytest.fixture
async def store(tmp_path: Any) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), Clock()) as store:
        yield store


async def test_the_timeline_of_a_page_goes_from_the_fault_to_the_acknowledgement(store: Store) -> None:
    fires = event_with(alert_of("ledger-kek", starts=990.0, title="ledger cannot encrypt"))
    await accept(store, "one", "slack", "email", event=fires)
    slow = await claim_one(store, "slack")
    await end_attempt(store, slow, DeliveryState.RETRYING, reason="timeout", detail="no answer\nin 10 s", retry_in=0.0)
    await end_attempt(store, await claim_one(store, "slack"))
    await acknowledge(store, "one", who="anna", via="slack", peer="slack:U1", acknowledging_channels=())
    history = await read_episode(store, "one")
    assert history is not None
    times = UnixTime(900.0), UnixTime(999.0)
    failure = KeyFailure(
        "ledger-kek", "encrypt", "permission_denied", *times, "x", 3, is_current=True, cause="perimeter"
    )
    old = msgspec.structs.replace(failure, target="old", first_at=UnixTime(1.0), last_at=UnixTime(5.0))
    others = [old, msgspec.structs.replace(failure, first_at=UnixTime(2000.0))]
    timeline = build_timeline(history, FailureHistory([others[0], failure, others[1]], 10.0))
    assert list_entries(timeline)[:3] == [
        ("fault", "KMS fails (perimeter): encrypt with ledger-kek, 3 round trips, it still fails"),
        ("alert", "Alert fires: ledger cannot encrypt"),
        ("accepted", "Webhook accepted: 1 firing, critical"),
    ]
    assert sorted(list_entries(timeline)[3:6]) == [
        ("acknowledged", "Acknowledged by anna"),
        ("delivered", "Delivered on slack, attempt 2"),
        ("failed", "Attempt 1 on slack failed"),
    ]
    by_kind = {each.kind: each for each in timeline.entries}
    assert by_kind[EntryKind.FAULT].reason == "permission_denied"
    assert by_kind[EntryKind.FAILED].detail == "no answer in 10 s"
    assert (by_kind[EntryKind.FAILED].seconds, by_kind[EntryKind.FAILED].reason) == (1.5, "timeout")
    assert (by_kind[EntryKind.ALERT].seconds, by_kind[EntryKind.ALERT].since) == (90.0, "fault")
    assert (by_kind[EntryKind.ACCEPTED].seconds, by_kind[EntryKind.ACCEPTED].since) == (10.0, "alert")
    assert by_kind[EntryKind.ACKNOWLEDGED].detail == "in Slack"
    hops = [(each.name, each.channel, each.seconds, each.total) for each in timeline.start]
    assert hops == [
        ("fault", None, None, 0.0),
        ("alert", None, 90.0, 90.0),
        ("accepted", None, 10.0, 100.0),
        ("delivered", "slack", 0.0, 100.0),
        ("delivered", "email", None, None),
    ]
    assert [*timeline.end] == []
    unknown = build_timeline(history, None)
    assert [(each.name, each.at) for each in unknown.start[:2]] == [("fault", None), ("alert", 990.0)]


def test_each_alert_that_begins_or_ends_has_its_entry_and_a_repeat_says_so() -> None:
    one, two = alert_of("one"), alert_of("two", starts=1100.0)
    over = alert_of("one", Status.RESOLVED)
    records = [
        record(1, event_with(one), 1010.0),
        record(2, event_with(one), 1020.0),
        record(3, event_with(over, two), 1510.0),
        record(4, event_with(over, alert_of("two", Status.RESOLVED, 1100.0)), 1610.0),
    ]
    timeline = build_timeline(history_of(*records), None)
    assert list_entries(timeline) == [
        ("alert", "Alert fires: KMSProbeFailing"),
        ("accepted", "Webhook accepted: 1 firing, critical"),
        ("accepted", "Webhook accepted: 1 firing, critical, as before"),
        ("alert", "Alert fires: KMSProbeFailing"),
        ("alert_over", "Alert is over: KMSProbeFailing"),
        ("accepted", "Webhook accepted: 1 firing, 1 resolved, critical"),
        ("alert_over", "Alert is over: KMSProbeFailing"),
        ("resolved", "Webhook accepted: 2 resolved; the incident is over"),
    ]
    assert [(each.name, each.seconds) for each in timeline.end] == [("alert", None), ("accepted", 10.0)]
    # A page in the middle knows what was before it, or does not guess.
    middle = history_of(*records[1:3], event_before=records[0], earlier=2)
    assert list_entries(build_timeline(middle, None))[0] == (
        "accepted",
        "Webhook accepted: 1 firing, critical, as before",
    )
    large = replace(middle, event_before=records[0]._replace(event=None))
    assert list_entries(build_timeline(large, None))[0] == ("accepted", "Webhook accepted: 1 firing, critical")
    unread = history_of(records[0], records[1]._replace(event=None, event_size=90_000))
    assert list_entries(build_timeline(unread, None))[-1] == (
        "accepted",
        "Webhook accepted: firing, 88 KB; its alerts are not listed here",
    )
    thirty = event_with(*(alert_of(f"{number}") for number in range(30)))
    assert list_entries(build_timeline(history_of(record(1, thirty, 1010.0)), None))[-1] == (
        "omitted",
        "Further alerts changed: 20 fire, 0 are over",
    )


def test_an_alert_that_ended_and_fires_again_between_two_webhooks_is_no_repeat() -> None:
    records = [
        record(1, event_with(alert_of("one")), 1010.0),
        record(2, event_with(alert_of("one", starts=1200.0)), 1210.0),
    ]
    assert list_entries(build_timeline(history_of(*records), None)) == [
        ("alert", "Alert fires: KMSProbeFailing"),
        ("accepted", "Webhook accepted: 1 firing, critical"),
        ("alert", "Alert fires: KMSProbeFailing"),
        ("accepted", "Webhook accepted: 1 firing, critical"),
    ]
    # Prometheus servers that report the same alert differ: then Alertmanager takes the earlier start.
    earlier = history_of(records[0], record(2, event_with(alert_of("one", starts=995.0)), 1020.0))
    assert list_entries(build_timeline(earlier, None))[-1] == (
        "accepted",
        "Webhook accepted: 1 firing, critical, as before",
    )


async def test_a_dead_letter_that_is_resent_was_given_up_and_is_merged_at_that_time(store: Store) -> None:
    await accept(store, "one", "slack")
    await end_attempt(store, await claim_one(store, "slack"), DeliveryState.DEAD, reason="rejected")
    dead = await read_episode(store, "one")
    assert dead is not None
    await let_pass(store, 600.0)
    await requeue(store, dead.deliveries[0].id)
    await end_attempt(store, await claim_one(store, "slack"))
    history = await read_episode(store, "one")
    assert history is not None
    (merged,) = (each for each in build_timeline(history, None).entries if each.kind is EntryKind.MERGED)
    assert merged.at == store.clock()
    assert merged.detail == f"It was given up at {format_json_time(store.clock() - 600.0)}, and is sent again."


async def test_who_sent_it_elsewhere_is_named(store: Store) -> None:
    await accept(store, "one", "slack")
    history = await read_episode(store, "one")
    assert history is not None
    await send_elsewhere(store, history.deliveries[0].id, "pagerduty", Actor("anna", "10.0.0.1"))
    history = await read_episode(store, "one")
    assert history is not None
    (entry,) = (each for each in build_timeline(history, None).entries if each.who)
    assert (entry.kind.value, entry.text, entry.detail) == (
        "sent_elsewhere",
        "anna sent it to pagerduty, too",
        "from 10.0.0.1",
    )


async def test_a_post_mortem_shows_hostile_text_as_text(store: Store) -> None:
    hostile = alert_of("ledger", title=HOSTILE, summary=f"line\n\n# heading\n{HOSTILE}", runbook_url="javascript:x")
    hostile = replace(hostile, labels={**hostile.labels, "team": HOSTILE, "# x": "- y"})
    await accept(store, "one", "slack", event=event_with(hostile))
    claim = await claim_one(store, "slack")
    await end_attempt(store, claim, DeliveryState.DEAD, reason="rejected", detail=HOSTILE)
    history, incident = await read_episode(store, "one"), await read_incident(store, "one")
    assert history is not None
    assert incident is not None
    event = decode_record(history.last_event)
    assert event is not None
    details = build_details("one", history, event, LinkRules(None, None))
    view = IncidentView(incident, history, build_timeline(history, None), details, "", is_fault_pending=False)
    text = build_markdown(view, 2000.0, "http://relay/incidents/one")
    assert text.startswith("# Incident: \\| \\[x\\](javascript:alert(1)) &lt;img src=x onerror=alert(1)&gt; \\`a\\`")
    for mark in ("<img", " `a` ", "**b**", "@team", "https://evil", "www.evil", "\n# heading"):
        assert mark not in text, mark
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert set(re.findall("<(?!/)([a-z0-9]+)", html)) <= {
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "strong",
        "a",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert set(re.findall('href="([^"]*)"', html)) == {"http://relay/incidents/one", "http://prometheus/graph"}
    assert html.count("<h1>") == 1
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {4, 5}, "no cell adds a column"
    assert "- **Incident**: <http://relay/incidents/one>" in text
