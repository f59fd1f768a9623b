"""What an outbox of an earlier revision than the newest holds is still there, and means the same, on both stores."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, column, insert, select, table

from services.relay.model import encode_event
from services.relay.outbox import tables
from services.relay.outbox.engine import migrations
from services.relay.outbox.prune_marks import PrunedKind, read_pruned
from services.relay.outbox.shared_dedup_key import build_group_id
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.tables import differences, opened, up
from tests.relay.served_relay import event_of


@pytest.fixture
def engine(empty_database: DatabaseUrl) -> Iterator[Engine]:
    """An empty outbox of revision 0002."""
    with opened(empty_database) as engine:
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            for revision in ("0001", "0002"):
                migrations.SCRIPTS.get_revision(revision).module.upgrade(Operations(context))
            context.stamp(migrations.SCRIPTS, "0002")
        yield engine


def _insert(connection: Connection, name: str, values: Mapping[str, object]) -> None:
    """A row of a table as it was by then; `tables` has today's columns."""
    connection.execute(insert(table(name, *map(column, values))).values(values))


def test_nobody_is_known_to_have_asked_for_a_pause(engine: Engine) -> None:
    old_row = {
        "name": "a",
        "open_at": 7.5,
        "set_at": 2.5,
        "next_slot": 1.5,
        "failures": 6,
        "refused": 1,
        "reason": "why",
    }
    with engine.begin() as connection:
        _insert(connection, "channels", old_row)
    up(engine)

    with engine.begin() as connection:
        (row,) = connection.execute(select(tables.channels)).mappings()
        renamed = {"name": "a", "paused_until": 7.5, "paused_set_at": 2.5, "next_token_at": 1.5, "failures": 6}
        renamed |= {"is_down": 1, "reason": "why"}
        assert row == dict.fromkeys(row) | renamed  # nothing is known of what was added since
        assert differences(connection) == []


def test_what_waits_was_reported_by_no_other_channel(engine: Engine) -> None:
    event = {"seq": 1, "id": "e", "incident_id": "x", "receiver": "", "alertname": "", "status": "firing"}
    event |= {"fingerprint": "", "accepted_at": 1.0, "event": b"", "body": b""}
    old_row = {"id": "d", "event_seq": 1, "incident_id": "x", "episode": 1, "channel": "a", "state": "queued"}
    old_row |= {"attempts": 0, "accepted_at": 1.0, "due_at": 1.0}
    with engine.begin() as connection:
        _insert(connection, "events", event)
        _insert(connection, "deliveries", old_row)
    up(engine)

    with engine.begin() as connection:
        assert connection.execute(select(tables.deliveries.c.fallback_up_to)).scalars().all() == [None]
        assert differences(connection) == []


@pytest.mark.parametrize(("first", "expected"), [(1, {}), (8, {PrunedKind.DELIVERIES: 5.0})])
def test_what_retention_deleted_before_it_was_recorded_is_known(
    engine: Engine, first: int, expected: Mapping[PrunedKind, float]
) -> None:
    event = {"seq": first, "id": "e", "incident_id": "x", "receiver": "", "alertname": "", "status": "firing"}
    event |= {"fingerprint": "", "accepted_at": 4.0, "event": b"", "body": b""}
    old_row = {"event_seq": first, "incident_id": "x", "episode": 1, "channel": "a", "state": "delivered"}
    old_row |= {"attempts": 1, "accepted_at": 4.0, "due_at": 4.0}
    with engine.begin() as connection:
        _insert(connection, "events", event)
        for seq in (first, first + 1):
            _insert(connection, "deliveries", old_row | {"seq": seq, "id": f"{seq}", "finished_at": 5.0 + seq - first})
    up(engine)

    with engine.begin() as connection:
        assert read_pruned(connection) == expected


def test_open_incidents_of_one_group_know_of_each_other(engine: Engine) -> None:
    given = (("one", "here", 1), ("two", "here", 1), ("three", "elsewhere", 1), ("four", "here", 0), ("five", "", 1))
    with engine.begin() as connection:
        for seq, (name, receiver, goes_on) in enumerate(given, start=1):
            renamed = replace(event_of(), receiver=name, source=receiver)
            event = {"seq": seq, "id": name, "incident_id": name, "receiver": "", "alertname": "", "status": "firing"}
            event |= {
                "fingerprint": "",
                "accepted_at": 1.0,
                "event": encode_event(renamed) if receiver else b"{",
                "body": b"",
            }
            _insert(connection, "events", event)
            row = {"id": name, "episode": 1, "open": goes_on, "latest_event": seq}
            _insert(connection, "incidents", row)
    up(engine)

    with engine.begin() as connection:
        groups = dict(connection.execute(select(tables.incidents.c.id, tables.incidents.c.group_id)).all())
        assert groups["one"] == groups["two"] == build_group_id(replace(event_of(), source="here"))
        assert groups["three"] not in {groups["one"], None}
        assert groups["four"] is groups["five"] is None


def test_the_newest_incident_is_the_one_whose_episode_began_last(engine: Engine) -> None:
    about = {"receiver": "", "alertname": "", "status": "firing", "fingerprint": "", "event": b"", "body": b""}
    sent = {"state": "delivered", "attempts": 1, "accepted_at": 1.0, "due_at": 1.0, "channel": "a"}
    with engine.begin() as connection:
        for seq, (incident, episode) in enumerate([("old", 1), ("old", 2), ("other", 1), ("old", 2)], start=1):
            event = {**about, "seq": seq, "id": f"{seq}", "incident_id": incident, "accepted_at": float(seq)}
            _insert(connection, "events", event)
            delivery = {**sent, "id": f"{seq}", "event_seq": seq, "incident_id": incident, "episode": episode}
            _insert(connection, "deliveries", delivery)
        for incident, episode, latest in (("old", 2, 4), ("other", 1, 3), ("silent", 1, 0)):
            _insert(connection, "incidents", {"id": incident, "episode": episode, "open": 1, "latest_event": latest})
    up(engine)

    with engine.begin() as connection:
        columns = tables.incidents.c
        first = connection.execute(select(columns.id, columns.first_event_seq)).all()
        assert sorted((row.id, row.first_event_seq) for row in first) == [("old", 2), ("other", 3), ("silent", 0)]
        assert connection.execute(select(columns.acknowledged_at, columns.escalation_after)).all() == [(None, None)] * 3
