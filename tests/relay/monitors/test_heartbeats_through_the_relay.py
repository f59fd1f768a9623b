"""A watchdog's webhook through the whole relay: taken, counted, passed on, and told to nobody."""

import json
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.conftest import Until
from tests.relay.served_relay import Scripted, metric, payload, post, served, settings
from tests.sites import serve_site

WATCHDOG = {"matchers": ["alertname=Watchdog"], "expect_every": "3m", "channels": ["page"]}


def webhook(*names: str, **labels: str) -> bytes:
    document = json.loads(payload(1))
    (alert,) = document["alerts"]
    alerts = [
        {**alert, "labels": {**alert["labels"], **labels, "alertname": name}, "fingerprint": name} for name in names
    ]
    return json.dumps(document | {"alerts": alerts}).encode()


async def last_seen(client: aiohttp.ClientSession, watchdog: str = "Watchdog") -> float:
    seen = await metric(client, "relay_watchdog_last_seen_timestamp_seconds", watchdog=watchdog)
    assert seen is not None
    return seen


async def test_heartbeats_are_answered_and_seen_and_what_comes_with_them_is_delivered(
    tmp_path: Path, until: Until
) -> None:
    page = Scripted()
    async with served(settings(tmp_path, {"page": page}, watchdogs=[WATCHDOG])) as client:
        start = time.time()
        answers: list[tuple[int, dict[str, Any]]] = [await post(client, webhook("Watchdog")) for _ in range(2)]
        for code, answer in answers:
            assert (code, answer["deliveries"], answer["duplicate"]) == (202, 0, False)
        assert start <= await last_seen(client) <= time.time()

        code, answer = await post(client, webhook("Watchdog", "KMSCryptoNotReady"))
        assert (code, answer["deliveries"]) == (202, 1)

        async def delivered() -> bool:
            return len(page.sent) == 1

        await until(delivered)
        assert [alert.labels["alertname"] for alert in page.sent[0].event.alerts] == ["KMSCryptoNotReady"]

        before = await last_seen(client)
        assert (await post(client, webhook("Watchdog", "KMSCryptoNotReady")))[1]["duplicate"]
        assert await last_seen(client) > before, "a heartbeat beside a repeat counts"


async def test_the_watchdogs_of_two_clusters_are_distinguished(tmp_path: Path, until: Until) -> None:
    page = Scripted()
    clusters = [
        WATCHDOG | {"matchers": ["alertname=Watchdog", f"cluster={cluster}"], "expect_every": longest}
        for cluster, longest in [("eu", "1m"), ("us", "1s"), ("ap", "1s")]
    ]
    async with served(settings(tmp_path, {"page": page}, watchdogs=clusters)) as client:

        async def is_delivered() -> bool:
            return len(page.sent) == 2

        await until(is_delivered)
        await post(client, webhook("Watchdog", cluster="eu"))
        absent = {message.event.common_labels["watchdog"]: message.task.incident_id for message in page.sent}
        assert set(absent) == {"Watchdog{cluster=us}", "Watchdog{cluster=ap}"}
        assert len(set(absent.values())) == 2
        assert await last_seen(client, "Watchdog{cluster=eu}") > await last_seen(client, "Watchdog{cluster=us}")


async def test_all_monitors_run_side_by_side_though_no_alertmanager_answers(tmp_path: Path, until: Until) -> None:
    requests: list[str] = []

    async def take(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response()

    pinged = WATCHDOG | {"ping_url_file": tmp_path / "url"}
    absent = WATCHDOG | {"matchers": ["alertname=Absent"], "expect_every": "1s"}
    page = Scripted()
    given = settings(
        tmp_path, {"page": page}, watchdogs=[pinged, absent], alertmanager={"urls": ["http://127.0.0.1:1"]}
    )
    async with serve_site(web.get("/ping", take)) as url, served(given) as client:
        (tmp_path / "url").write_text(f"{url}/ping")
        code, _ = await post(client, b"{")
        assert code == 400
        await post(client, webhook("Watchdog"))

        async def are_done() -> bool:
            names = sorted(message.event.common_labels["alertname"] for message in page.sent)
            return names == ["RelayWebhookQuarantined", "WatchdogAbsent"] and requests == ["/ping"]

        await until(are_done)
