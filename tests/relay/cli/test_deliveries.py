"""`keypulse-relay deliveries`: what a person, or a program, sees of the outbox."""

import json
import zlib

import pytest
from sqlalchemy import create_engine, update

from services.relay import cli as commands
from services.relay.deliveries.queries import _EXPECTED_SINCE
from services.relay.outbox.tables import DeliveryState, events
from shared.sql.database_url import DatabaseUrl
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


async def two(rows: Rows) -> list[str]:
    """A page that was delivered, and an older mail that was given up."""
    old, new = await rows.event("old", age=600), await rows.event("new")
    return [
        await rows.delivery(old, "mail", DeliveryState.DEAD, reason="rejected"),
        await rows.delivery(
            new, "pager", receipt='{"dedup_key": "k"}', payload=zlib.compress(b'{"summary": "as sent"}')
        ),
    ]


@each_store
def test_a_table_shows_the_newest_first(typed: Typed, fill: Fill) -> None:
    dead, delivered = fill(two)
    result = typed("deliveries")
    assert result.exit_code == 0
    headings, *lines = result.stdout.splitlines()
    assert headings.split() == ["id", "accepted", "alertname", "status", "channel", "state", "attempts", "reason"]
    rows = [line.split() for line in lines]
    assert [[line[0], *line[2:]] for line in rows] == [
        [delivered, "Alert-new", "firing", "pager", "delivered", "1", "ok"],
        [dead, "Alert-old", "firing", "mail", "dead", "1", "rejected"],
    ]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["--state", "dead"], [0]),
        (["--channel", "pager"], [1]),
        (["--alertname", "Alert-old"], [0]),
        (["--since", "2020-01-01T00:00:00Z"], [1, 0]),
        (["--since", "2999-01-01T00:00:00Z"], []),
        (["--limit", "1"], [1]),
        (["--channel", "pager", "--state", "dead"], []),
    ],
)
def test_filters_choose(typed: Typed, fill: Fill, filters: list[str], wanted: list[int]) -> None:
    stored = fill(two)
    lines = typed("deliveries", "--json", *filters).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [stored[number] for number in wanted]


def test_a_limit_over_one_page_is_kept(typed: Typed, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill_pages(rows: Rows) -> list[str]:
        event = await rows.event()
        return [await rows.delivery(event, f"channel-{number}") for number in range(7)]

    monkeypatch.setattr(commands, "_PAGE_SIZE", 5)
    stored = fill(fill_pages)
    for limit in (4, 5, 6, 99):
        lines = typed("deliveries", "--json", "--limit", f"{limit}").stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == list(reversed(stored))[:limit]


def test_one_is_shown_with_its_attempts_its_receipt_and_what_was_sent(typed: Typed, fill: Fill) -> None:
    _, delivered = fill(two)
    output = typed("deliveries", delivered).stdout
    for part in (delivered, "dedup_key=k", "0.500", "250 queued", '{"summary": "as sent"}'):
        assert part in output
    whole = json.loads(typed("deliveries", delivered, "--json").stdout)
    assert whole["payload"] == '{"summary": "as sent"}'
    assert [attempt["detail"] for attempt in whole["attempts"]] == ["250 queued"]


def test_an_unknown_one_exits_with_1(typed: Typed, fill: Fill) -> None:
    fill(two)
    result = typed("deliveries", "unknown")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "unknown: no such delivery\n")


def test_what_an_alert_says_cannot_steer_the_terminal(typed: Typed, fill: Fill) -> None:
    async def hostile(rows: Rows) -> str:
        event = await rows.event()
        name = "\x1b[2J[red]\u202eevil\nline"
        await rows.store.run(lambda transaction: transaction.connection.execute(update(events).values(alertname=name)))
        return await rows.delivery(event, payload=zlib.compress(b"\x1b]0;title\x07\r[bold]sent"))

    one = fill(hostile)
    for result in (typed("deliveries"), typed("deliveries", one)):
        assert "[red]evil line" in result.stdout
        assert not set("\x1b\x07\r\u202e").intersection(result.stdout)
    assert "[bold]sent" in typed("deliveries", one).stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--state", "lost"], "--state: expected one of queued, sending, retrying, delivered, superseded, dead"),
        (
            ["--since", "monday"],
            f"--since: {_EXPECTED_SINCE}, got 'monday'",
        ),
        (["--limit", "0"], "--limit: expected a number from 1 on, got '0'"),
        (["--channel", "a\0b"], "--channel: expected UTF-8 without a NUL character, got 'a\\x00b'"),
        (["--alertname", "\udcff"], "--alertname: expected UTF-8 without a NUL character, got '\\udcff'"),
        (["\udcff"], "ID: expected UTF-8 without a NUL character, got '\\udcff'"),
        (["an-id", "--state", "dead"], "ID: expected without filters, which are for a list"),
        (["an-id", "--limit", "50"], "ID: expected without filters, which are for a list"),
    ],
)
def test_an_error_exits_with_2_and_one_line(typed: Typed, arguments: list[str], line: str) -> None:
    result = typed("deliveries", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


@each_store
def test_it_is_shown_while_somebody_else_locks_the_database(typed: Typed, fill: Fill, database: DatabaseUrl) -> None:
    _, delivered = fill(two)
    hold = "BEGIN EXCLUSIVE" if database.drivername == "sqlite" else "LOCK TABLE deliveries, events IN EXCLUSIVE MODE"
    engine = create_engine(database)
    with engine.connect() as holder:
        holder.exec_driver_sql(hold)
        result = typed("deliveries", "--channel", "pager")
    engine.dispose()
    assert (result.exit_code, result.stderr) == (0, "")
    assert delivered in result.stdout
