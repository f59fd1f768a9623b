"""A real Prometheus runs the product's own files, and the copy on a faster clock that the demo runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ops.demo.time_scale import scale_yaml
from tests.ops.rules import FILES, GROUPS, PROMETHEUS
from tests.sites import serve_site

pytestmark = pytest.mark.played

TIMEOUT = 90.0
BURST_WINDOW = 5.0
"""Seconds of the demo's clock in which KMSDecryptionErrorsBurst counts."""
Running = Callable[..., AbstractAsyncContextManager[str]]
Start = Callable[..., Awaitable[str]]


class Scraped:
    """Stands where the exporter or the relay is scraped; the test says what it exposes."""

    def __init__(self, exposed: str = "") -> None:
        self.address = ""
        self.exposed = exposed

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.exposed)


def crypto(*, mode: int, errors: int = 0) -> str:
    """What an exporter exposes of a service that is well but for its mode and its errors."""
    labels = '{service="ledger"}'
    call = 'service="ledger",target="ledger-kek",operation="encrypt"'
    return (
        f"crypto_mode{labels} {mode}\ncrypto_ready{labels} 1\ncrypto_backend_up{labels} 1\n"
        f"crypto_init_timestamp_seconds{labels} 1\ncrypto_decryption_errors_total{labels} {errors}\n"
        f'kms_operation_duration_seconds_bucket{{{call},le="1"}} 5\n'
        f'kms_operation_duration_seconds_bucket{{{call},le="+Inf"}} 5\n'
    )


@asynccontextmanager
async def serving(scraped: Scraped) -> AsyncIterator[Scraped]:
    async with serve_site(web.get("/metrics", scraped.metrics)) as url:
        scraped.address = url.removeprefix("http://")
        yield scraped


@pytest.fixture
async def exporter() -> AsyncIterator[Scraped]:
    async with serving(Scraped()) as exporter:
        yield exporter


@pytest.fixture
async def relay() -> AsyncIterator[Scraped]:
    """A relay that is well."""
    async with serving(Scraped('relay_outbox_deliveries{channel="pagerduty",state="dead"} 0\n')) as relay:
        yield relay


@pytest.fixture
def arguments(exporter: Scraped, relay: Scraped, tmp_path: Path) -> list[str]:
    """Prometheus's: every duration of its files is a sixtieth, so it scrapes and evaluates each second."""
    # Port 1 takes nothing: no Alertmanager that others run may be touched.
    local_addresses = {
        "127.0.0.1:9911": exporter.address,
        "127.0.0.1:9912": relay.address,
        "127.0.0.1:9093": "127.0.0.1:1",
    }
    (tmp_path / "rules").mkdir()
    for file in (PROMETHEUS / "prometheus.yml", *FILES):
        copy = tmp_path / file.relative_to(PROMETHEUS)
        copy.write_text(scale_yaml(file.read_text(), lambda value: local_addresses.get(value, value)))
    return [
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--rules.alert.for-grace-period=1s",  # a sixtieth of what prometheus.yml asks for
    ]


@pytest.fixture
async def prometheus(start: Start, arguments: list[str]) -> str:
    url = await start("prometheus", *arguments)

    async def ready() -> bool:
        async with aiohttp.ClientSession(url) as session, session.get("/-/ready") as answer:
            return answer.status == 200

    await until(ready)
    return url


@pytest.fixture
async def query_api(prometheus: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """The `data` of an answer of Prometheus's API."""
    async with aiohttp.ClientSession(prometheus, timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:

        async def query_api(path: str, **parameters: str) -> Any:
            async with session.get(f"/api/v1/{path}", params=parameters) as answer:
                return (await answer.json())["data"]

        yield query_api


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - another program's state: nothing here could set an Event
            await asyncio.sleep(0.1)


async def has(query_api: Callable[..., Awaitable[Any]], metric: str) -> bool:
    return bool((await query_api("query", query=metric))["result"])


async def test_on_the_demos_clock_every_rule_evaluates_and_a_lost_mode_fires_and_resolves(
    exporter: Scraped, query_api: Callable[..., Awaitable[Any]]
) -> None:
    async def evaluated() -> bool:
        groups = (await query_api("rules"))["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])

    async def recorded(name: str, expected: str) -> bool:
        result = (await query_api("query", query=name))["result"]
        return [(r["metric"]["env"], r["metric"]["service"], r["value"][1]) for r in result] == [
            ("production", "ledger", expected)
        ]

    async def firing() -> set[str]:
        return {a["labels"]["alertname"] for a in (await query_api("alerts"))["alerts"] if a["state"] == "firing"}

    exporter.exposed = crypto(mode=1)
    await until(lambda: recorded("kms:crypto_health_status", "1"))
    await until(lambda: recorded("kms:decryption_error_rate_5m", "0"))
    await until(evaluated)

    errors, burst_at = 11, time.monotonic()
    exporter.exposed = crypto(mode=0, errors=errors)
    await until(lambda: recorded("kms:crypto_health_status", "0"))

    fired: set[str] = set()

    async def both_fired() -> bool:
        nonlocal errors, burst_at
        if time.monotonic() - burst_at > BURST_WINDOW + 1:  # nobody saw that one: another
            errors, burst_at = errors + 11, time.monotonic()
            exporter.exposed = crypto(mode=0, errors=errors)
        fired.update(await firing())
        return {"KMSCryptoModeNotKMS", "KMSDecryptionErrorsBurst"} <= fired

    await until(both_fired)
    exporter.exposed = crypto(mode=1, errors=errors)

    async def only_the_heartbeat_fires() -> bool:
        return await firing() == {"Watchdog"}

    await until(only_the_heartbeat_fires)
    loaded = (await query_api("rules"))["groups"]
    rules = [rule for group in loaded for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert {group["name"]: len(group["rules"]) for group in loaded} == {g["name"]: len(g["rules"]) for g in GROUPS}


async def test_an_alert_that_fires_still_fires_after_a_restart_so_that_nobody_gets_an_all_clear(
    running: Running, arguments: list[str], exporter: Scraped
) -> None:
    async def firing_since(url: str) -> dict[str, str]:
        """When each began, to the second: Prometheus stores no fraction of it."""
        since: dict[str, str] = {}

        async def fire() -> bool:
            async with aiohttp.ClientSession(url) as session, session.get("/api/v1/alerts") as answer:
                alerts = (await answer.json())["data"]["alerts"] if answer.status == 200 else []
            firing = {a["labels"]["alertname"]: a["activeAt"] for a in alerts if a["state"] == "firing"}
            since.update({name: firing[name][: len("2026-01-01T00:00:00")] for name in names & firing.keys()})
            return since.keys() == names

        await until(fire)
        return since

    names = {"KMSCryptoModeNotKMS", "KMSProbeFailing"}
    exporter.exposed = crypto(mode=0) + probed(success=0)
    async with running("prometheus", *arguments) as url:
        before = await firing_since(url)
    async with running("prometheus", *arguments) as url:
        assert await firing_since(url) == before


def probed(*, success: int, **failures: int) -> str:
    """What it exposes of a key, with the failures of its encryptions by their reason."""
    labels = 'service="ledger",target="ledger-kek"'
    counted = (
        f'kms_probe_failures_total{{{labels},operation="encrypt",reason="{reason}"}} {failures.get(reason, 0)}\n'
        for reason in ("permission_denied", "timeout")
    )
    gauges = f"kms_probe_success{{{labels}}} {success}\nkms_probe_last_success_timestamp_seconds{{{labels}}} 1\n"
    return gauges + "".join(counted)


async def test_a_message_has_the_reason_of_the_moment_while_its_alert_stays_the_same(
    exporter: Scraped, query_api: Callable[..., Awaitable[Any]]
) -> None:
    failures = dict.fromkeys(("permission_denied", "timeout"), 0)

    async def wait_for_alert(reason: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def has_reason() -> bool:
            failures[reason] += 1
            exporter.exposed = probed(success=0, **failures)
            for alert in (await query_api("alerts"))["alerts"]:
                if alert["labels"]["alertname"] == "KMSProbeFailing" and alert["state"] == "firing":
                    found.update(alert)
            return str(found.get("annotations", {}).get("title", "")).startswith(f"{reason}: ")

        await until(has_reason)
        return found

    exporter.exposed = probed(success=1)
    await until(lambda: has(query_api, "kms_probe_success"))
    denied = await wait_for_alert("permission_denied")
    assert "Last successful round trip: 1970-01-01 00:00:01 +0000 UTC." in denied["annotations"]["description"]
    assert {**await wait_for_alert("timeout"), "annotations": {}} == {**denied, "annotations": {}}
