"""The proofs as API and page: how each channel is, where its last proof was lost, and what each hop took."""

import csv
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import insert, update

from services.relay.outbox.proofs import Hop
from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import channel_proofs, channels, path_proofs
from services.relay.proofs import queries
from shared.http.json_api import format_json_time
from shared.sql.database_url import create_sqlite_url
from shared.sql.rows import RowQuery
from shared.web.time_format import format_utc_time
from tests.relay.console.test_api import get
from tests.relay.outbox.test_query_plans import plan
from tests.relay.proofs.seeded_proofs import EVERY, Outcome, seed_proofs, serve_since
from tests.relay.served_relay import Scripted, served, settings

NOW = 1_800_000_120.0
LAST = NOW - 120.0
LOST = LAST - EVERY
"""The last interval, and that before it."""
NAMES = ("slack", "mail", "pager", "hook", "new")


def find(channel: str, at: float) -> Outcome:
    """`slack` is whole, `mail` gets no further, `pager` is lost since three intervals, `hook` fails just now."""
    if at == LOST and channel != "new":
        return Hop.ALERTMANAGER
    return {
        "slack": "read_back",
        "mail": ("reachable", "451 <try> later"),
        "pager": "accepted" if at < LOST - 2 * EVERY else Hop.CHANNEL,
        "hook": (None, "HTTP 401") if at == LAST else "reachable",
        "new": None,
    }[channel]


async def read_page(client: aiohttp.ClientSession, path: str = "/proof") -> str:
    """The text of a page, without its tags."""
    async with client.get(path) as answer:
        assert answer.status == 200
        return " ".join(re.sub("<[^>]+>", " ", await answer.text()).split())


async def test_the_proofs_of_an_interval_are_on_one_page_and_no_page_leaves_one_out(tmp_path: Path) -> None:
    configured = settings(tmp_path, {"slack": Scripted()})

    def add_services(transaction: Transaction) -> None:
        one = {"started_at": LAST, "env": "prod", "raised_at": LAST, "received_at": LAST, "accepted_at": LAST}
        services = [one | {"service": service} for service in ("billing", "mail")]
        later = one | {"started_at": LAST - 3 * EVERY + 300.0, "service": "each-5-min"}
        transaction.connection.execute(insert(path_proofs), [*services, later])

    async with open_store(configured.database, lambda: NOW) as store:
        await seed_proofs(store, ("slack",), 6 * EVERY)
        await store.run(add_services)
    async with served(configured, clock=lambda: NOW) as client:
        whole = (await get(client, "/api/proofs"))[1]["proofs"]
        pages, cursor = list[list[dict[str, Any]]](), ""
        while cursor is not None:
            page = (await get(client, f"/api/proofs?limit=2{cursor and '&cursor='}{cursor}"))[1]
            pages.append(page["proofs"])
            cursor = page["next_cursor"]
        assert (await get(client, "/api/proofs?limit=0"))[0] == 400
    started = [(each["started"], each["service"]) for each in whole]
    hour = [format_json_time(LAST - number * EVERY) for number in range(6)]
    assert started == [
        *((hour[0], service) for service in ("backend", "billing", "mail")),
        *((at, "backend") for at in hour[1:3]),
        (format_json_time(LAST - 3 * EVERY + 300.0), "each-5-min"),
        *((at, "backend") for at in hour[3:]),
    ]
    assert [len(page) for page in pages] == [3, 2, 2, 2]
    assert [each for page in pages for each in page] == whole


@pytest.mark.parametrize(
    "query", [queries._LAST, queries._INTERVALS, queries._CHANNELS_OF, queries._PATHS_OF, queries._ENDED]
)
async def test_what_is_read_of_a_time_is_found_by_it(tmp_path: Path, query: RowQuery[Any]) -> None:
    values = {**dict.fromkeys(("since", "before", "oldest", "newest"), NOW), "most": 1, "failing": ["slack"]}
    given = {name: values[name] for name in query.statement.compile().params if name in values}
    async with open_store(create_sqlite_url(tmp_path / "relay.db"), lambda: NOW) as store:
        found = await store.read(partial(plan, query, given))
    assert "USING PRIMARY KEY" in found
    assert "SCAN" not in found.replace("SCAN anon_1", "")  # what it found


async def test_the_report_has_the_share_that_was_proven_and_the_hop_of_the_longest_gap(tmp_path: Path) -> None:
    lost = {LAST - number * EVERY for number in (10, 11, 12)}
    configured = settings(tmp_path, {name: Scripted() for name in ("slack", "mail")})
    async with open_store(configured.database, lambda: NOW) as store:
        await seed_proofs(
            store, ("slack", "mail"), 86400.0, lambda _name, at: Hop.ALERTMANAGER if at in lost else "accepted"
        )
        await store.run(partial(serve_since, names=("slack", "mail"), at=NOW - 86400.0))
    async with served(configured, clock=lambda: NOW) as client:
        paths = (await get(client, "/api/report?since=20h"))[1]["paths"]
        old = (await get(client, "/api/report?since=60d"))[1]["paths"]
        async with client.get("/report.csv?since=20h") as answer:
            rows = [row for row in csv.DictReader(io.StringIO(await answer.text())) if row["section"] == "path"]
        page = await read_page(client, "/report?since=60d")
    # The next one comes 4 intervals after the last, and that is proven for two.
    gap = {"longest_gap_seconds": 1800.0, "longest_gap_at": format_json_time(LAST - 11 * EVERY + 64.0)}
    figures = {"proven_share": 0.975, **gap, "hop": "alertmanager"}
    assert paths == {
        "summary": "every path proven 97.5 % of the time; longest gap 30 min, at alertmanager",
        "complete_since": None,
        "channels": [{"channel": name, **figures} for name in ("mail", "slack")],
    }
    found = [(row["channel"], row["worst_seconds"], row["reason"], row["detail"]) for row in rows]
    assert found == [(name, "1800.0", "alertmanager", "0.975") for name in ("mail", "slack")]
    kept = NOW - 31 * 86400.0
    assert old["complete_since"] == format_json_time(kept)
    assert old["summary"].startswith("every path proven 97.8 % of the time"), "from its first proof on"
    assert f"{format_utc_time(kept)} : older proofs are not kept" in page


async def test_without_proofs_the_page_says_what_to_set_and_nothing_else_speaks_of_them(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"slack": Scripted()}, proof={"every": "0"})) as client:
        assert "Nothing is proven: set proof.every" in (await read_page(client))
        assert (await get(client, "/api/proofs"))[1] == {"channels": [], "proofs": [], "next_cursor": None}
        assert (await get(client, "/api/report"))[1]["paths"] is None
        assert "Proof " not in (await read_page(client, "/")).partition("Audit")[2]


async def test_a_proof_that_has_no_turn_behind_a_circuit_breaker_is_at_its_channel(tmp_path: Path) -> None:
    def revoke(transaction: Transaction) -> None:
        serve_since(transaction, ["slack"], NOW - 90000.0)
        # The start of a relay ends every pause but one that the provider asked for.
        down = {"is_down": 1, "retry_after_until": NOW + 86400.0, "failed_detail": "HTTP 401"}
        transaction.connection.execute(update(channels).values(**down))
        waiting = {"channel": "slack", "interval_at": LAST, "attempts": 0, "due_at": LAST}
        transaction.connection.execute(insert(channel_proofs).values(**waiting))

    configured = settings(tmp_path, {"slack": Scripted()})
    async with open_store(configured.database, lambda: NOW) as store:
        await seed_proofs(store, ["slack"], 86400.0, lambda _name, at: "read_back" if at < LOST else None)
        await store.run(revoke)
    async with served(configured, clock=lambda: NOW) as client:
        ((channel,), page) = (await get(client, "/api/proofs"))[1]["channels"], await read_page(client)
    assert (channel["ok"], channel["hop"], channel["error"]) == (False, "channel", "HTTP 401")
    assert "lost at channel: HTTP 401" in page


async def test_each_channel_has_its_level_its_age_and_where_its_last_proof_was_lost(tmp_path: Path) -> None:
    configured = settings(tmp_path, {name: Scripted() for name in NAMES})
    async with open_store(configured.database, lambda: NOW) as store:
        assert await seed_proofs(store, NAMES, 86400.0, find) == LAST
        await store.run(partial(serve_since, names=[*NAMES[:-1]], at=NOW - 90000.0))
    async with served(configured, clock=lambda: NOW) as client:
        status, answer = await get(client, "/api/proofs?limit=2")
        page = await read_page(client)
    assert status == 200
    keys = ("channel", "level", "age_seconds", "ok", "hop", "error")
    assert [tuple(each[key] for key in keys) for each in answer["channels"]] == [
        ("slack", "read_back", 56.0, True, None, None),
        ("mail", "reachable", 56.0, True, None, "451 <try> later"),
        ("pager", "accepted", 120.0 + 4 * EVERY - 64.0, False, "channel", "no channel in time"),
        ("hook", "reachable", 120.0 + 2 * EVERY - 64.0, False, "channel", "HTTP 401"),
        ("new", None, None, None, None, None),
    ]
    assert answer["channels"][0]["proven_at"] == format_json_time(LAST + 64.0)
    came, lost = answer["proofs"]
    names = {"service": "backend", "env": "prod"}
    hops = {"prometheus": 40.0, "alertmanager": 41.5, "webhook": 62.0, "outbox": 62.25}
    assert came == {
        "started": format_json_time(LAST),
        **names,
        "hops": hops,
        "channels": [
            {"channel": "hook", "level": None, "seconds": None, "error": "HTTP 401"},
            {"channel": "mail", "level": "reachable", "seconds": 64.0, "error": "451 <try> later"},
            {"channel": "pager", "level": None, "seconds": None, "error": "no channel in time"},
            {"channel": "slack", "level": "read_back", "seconds": 64.0, "error": None},
        ],
    }
    for text in (
        "slack read back 56 s ago proven",
        "mail reachable 56 s ago 451 &lt;try&gt; later",
        "pager accepted 1 h ago lost at channel: no channel in time",
        "hook reachable 30 min ago lost at channel: HTTP 401",
        "new none never none yet",
        "backend, prod, begun 2 min ago prometheus 40.0 s alertmanager 41.5 s webhook 1 min 2.0 s",
        "outbox 1 min 2.2 s hook waits mail 1 min 4.0 s pager lost slack 1 min 4.0 s",
    ):
        assert text in page
    rows = [{"channel": name, "level": None, "seconds": None, "error": "no alertmanager in time"} for name in NAMES]
    assert lost == {
        "started": format_json_time(LOST),
        **dict.fromkeys(names),
        "hops": dict.fromkeys(hops),
        "channels": sorted(rows[:-1], key=lambda row: str(row["channel"])),
    }
