"""The page of a key's failures: they stay when the hour is over, with their words, their way and what to do."""

import re
from typing import Final

import httpx2

from services.exporter.history import MAX_FAILURE_SPANS, History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from shared.http.server import create_application, create_registry
from shared.kms.port import ConnectivityPhase
from shared.kms.reason import Cause, Reason

NOW: Final = 1_768_469_400.0
HOUR: Final = 3600.0
NAME: Final = "a/b & c?"


def probe(
    history: History, at: float, reason: Reason | None = None, detail: str = "", *connectivity: ConnectivityPhase
) -> None:
    call = Call(Operation.ENCRYPT, 0.01, Failure(reason, detail) if reason else None)
    history.add_probe(ProbeResult("ledger", NAME, at, (call,), None, None, connectivity))


def started() -> History:
    history = History(clock=lambda: NOW)
    history.configure({("ledger", NAME): TargetKey()}, [])
    return history


async def page(history: History) -> str:
    """The page that the board links to."""
    pages = BoardPages(history, result_max_age=180, runbook_url="https://example.org/r", clock=lambda: NOW)
    app = create_application("keypulse exporter", create_registry(), pages.build_routes())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        links = re.findall(r'href="(history[^"]+)"', (await client.get("/")).text)
        answer = await client.get(links[0] if links else "/history", params=None if links else {"target": NAME})
    assert answer.status_code == 200
    return answer.text


async def test_a_failure_stays_when_the_successes_around_it_are_over() -> None:
    history = started()
    probe(history, NOW - 3 * HOUR)
    probe(history, NOW - 2 * HOUR, Reason.KEY_DISABLED, "version 2 is not enabled")
    probe(history, NOW - 2 * HOUR + 30, Reason.KEY_DISABLED, "version 2 is still not enabled")
    probe(history, NOW - 2 * HOUR + 60)
    probe(history, NOW - 10)
    html = await page(history)
    assert "version 2 is still not enabled" in html
    assert "2 times in a row, from 2026-01-15 07:30:00 UTC to 2026-01-15 07:30:30 UTC (1 h ago)" in html
    assert "In the last hour 1 of 1 round trips succeeded" in html
    assert '<a href="https://example.org/r#key_disabled" rel="noreferrer">Runbook: key_disabled</a>' in html


async def test_the_newest_comes_first_each_with_its_connectivity_phases() -> None:
    history = started()
    probe(
        history,
        NOW - 90,
        Reason.UNAVAILABLE,
        "this was before",
        ConnectivityPhase("dns", 0.1, "no such name", Cause.DNS),
    )
    probe(history, NOW - 60, Reason.PERMISSION_DENIED, "this came after")
    html = await page(history)
    assert html.index("this came after") < html.index("this was before")
    assert "It is the network, at DNS: no such name" in html


async def all_of_them(history: History) -> str:
    """The page without a target."""
    app = create_application(
        "keypulse exporter", create_registry(), BoardPages(history, result_max_age=180).build_routes()
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        answer = await client.get("/history")
    assert answer.status_code == 200
    return answer.text


async def test_without_a_target_the_last_failures_of_all_keys_are_shown_the_newest_first() -> None:
    history = History(clock=lambda: NOW)
    history.configure(dict.fromkeys([("ledger", NAME), ("vault", "<b>")], TargetKey()), [])
    assert "No round trip has failed since the exporter started." in await all_of_them(history)
    probe(history, NOW - 90, Reason.UNAVAILABLE, "this was before")
    failure = Failure(Reason.KEY_DISABLED, "this came after")
    history.add_probe(ProbeResult("vault", "<b>", NOW - 60, (Call(Operation.ENCRYPT, 0.01, failure),), None))
    html = await all_of_them(history)
    assert html.index("this came after") < html.index("this was before")
    assert re.findall(r'<a href="history\?target=([^"]+)">([^<]+)</a>', html) == [
        ("%3Cb%3E", "&lt;b&gt;"),
        ("a/b%20%26%20c%3F", "a/b &amp; c?"),
    ]
    for n in range(MAX_FAILURE_SPANS):
        probe(history, NOW - 50 + n / 10, Reason.TIMEOUT if n % 2 else Reason.UNAVAILABLE, f"number {n}.")
    html = await all_of_them(history)
    assert html.count('<li class="card failing">') == MAX_FAILURE_SPANS
    assert "this came after" not in html
