"""The report as API, CSV and page: the figures that were counted by hand, each of them in all three."""

import asyncio
import csv
import io
import re
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.deliveries.queries import _EXPECTED_SINCE
from services.relay.outbox.store import StoreUnavailableError, open_store
from services.relay.preview import pages as deferred_part
from services.relay.report import queries as outbox_report
from services.relay.report import report as reader
from tests.relay.console.test_api import get
from tests.relay.report.small_history import HOSTILE, SINCE, add_small_history, check_csv, check_report
from tests.relay.served_relay import Scripted, served, settings

FRAGMENT = {"HX-Request": "true", "HX-Target": "figures"}


async def read_page(
    client: aiohttp.ClientSession, query: str, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """The text of a page, without its tags."""
    async with client.get(f"/report{query}", headers=headers) as answer:
        return answer.status, " ".join(re.sub("<[^>]+>", " ", await answer.text()).split())


async def test_api_csv_and_page_have_the_figures_that_were_counted_manually(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_part, "_MAX_WAIT", 10.0)
    configured = settings(tmp_path, {name: Scripted() for name in ("slack", "email", "pager", "log")})
    async with open_store(configured.database, time.time) as store:
        await add_small_history(store)
    async with served(configured) as client:
        status, report = await get(client, f"/api/report?since={SINCE}")
        assert status == 200
        check_report(report)

        async with client.get(f"/report.csv?since={SINCE}") as answer:
            assert answer.headers["content-type"] == "text/csv; charset=utf-8"
            assert answer.headers["content-disposition"] == 'attachment; filename="keypulse-report.csv"'
            check_csv(list(csv.DictReader(io.StringIO(await answer.text()))))

        status, page = await read_page(client, f"?since={SINCE}")
        assert status == 200
        for figures in (
            "Incidents 4 50 % acknowledged",
            "Time to acknowledge 2 min p95 10 min, worst 10 min",
            "Escalations 1 nobody acknowledged in time",
            "Delivered 14 on 2 of 4 channels",
            "Never delivered 3 given up",
            "Quarantined webhooks 3 refused as unreadable or too large",
            "slack 11 6 s 1 min 40 s 1 min 40 s 1 -",
            "pager 0 - - - - 3",
            "6 min 40 s email KMSHighLatency firing",
            "Provider 2 of 3 attempts failed in 6 min 40 s: server_error, timeout",
            "Circuit breaker waited 1 min 30 s while other messages failed on the channel: timeout (2)",
            "1 pager timeout no answer within 10 s",
            "KMSHighLatency 2 1",
            "without a service 1 0",
            "2 × 400 it is no JSON",  # noqa: RUF001  # as the page writes it
        ):
            assert figures in page
        assert "&#34;http://evil.example&#34;" in page
        assert HOSTILE not in page

        for query, error in (
            (
                "since=30",
                f"since: {_EXPECTED_SINCE}",
            ),
            ("days=3", "unknown parameter; expected since, from, to"),
        ):
            assert await get(client, f"/api/report?{query}") == (400, {"error": error})
        status, page = await read_page(client, "?from=2026-11-31")
        assert (status, "This is no period: from: expected a date such as" in page) == (400, True)
        async with client.get("/report.csv?since=x") as answer:
            assert answer.status == 400


async def test_a_long_report_comes_after_the_first_paint_and_is_read_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, may_end = [], threading.Event()

    def read_long(*arguments: Any, **options: Any) -> outbox_report.Report:
        reads.append(options["period"])
        assert may_end.wait(60)
        return outbox_report.read_report(*arguments, **options)

    monkeypatch.setattr(reader, "read_report", read_long)
    monkeypatch.setattr(reader, "_FRESH_SECONDS", 600.0)
    monkeypatch.setattr(deferred_part, "_MAX_WAIT", 0.01)
    async with served(settings(tmp_path, {"slack": Scripted()})) as client:
        others = asyncio.gather(read_page(client, "", FRAGMENT), get(client, "/api/report"))
        for _ in range(2):
            assert "Counting incidents and deliveries" in (await read_page(client, ""))[1]
        may_end.set()
        (_, fragment), (_, api) = await others
        monkeypatch.setattr(deferred_part, "_MAX_WAIT", 60.0)
        assert "Time to deliver, by channel" in fragment
        assert "Escalations 0 none " in fragment
        assert "keypulse 0" not in fragment  # the footer of a page
        assert api["incidents"]["count"] == 0
        assert "Time to deliver, by channel" in (await read_page(client, ""))[1]  # it is there by now
        assert len(reads) == 1
        await get(client, "/api/report?since=7d")
        assert len(reads) == 2


async def test_a_report_that_cannot_be_read_says_so_where_it_would_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> outbox_report.Report:
        raise StoreUnavailableError("the disk is gone")

    monkeypatch.setattr(reader, "read_report", fail)
    async with served(settings(tmp_path, {"slack": Scripted()})) as client:
        status, fragment = await read_page(client, "?since=7d", FRAGMENT)
        assert (status, "The store cannot be read now: the disk is gone. Try again" in fragment) == (200, True)
        status, page = await read_page(client, "?since=7d")
        assert (status, "The store cannot be read now" in page) == (503, True)
        assert (await get(client, "/api/report"))[0] == 503


async def test_a_webhook_without_credentials_is_refused_on_now_and_never_quarantined(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"slack": Scripted()})) as client:
        async with client.post("/alerts", data=b"{}", headers={"Authorization": "Bearer wrong"}) as answer:
            assert answer.status == 401
        async with client.get("/") as answer:
            assert "ago (401): wrong or no credentials." in await answer.text()
        _, page = await read_page(client, "", FRAGMENT)
        assert "Quarantined webhooks 0 none" in page
        assert "What is refused because of its sender" in page
        assert "Refused" not in page
