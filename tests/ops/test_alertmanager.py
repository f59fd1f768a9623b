"""A real Alertmanager runs the product's own routing file, on a faster clock."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ops.demo.time_scale import scale_yaml
from tests.ops.routing import FILE, uncommented
from tests.ops.rules import ALERTS
from tests.sites import serve_site

TIMEOUT = 60.0
Start = Callable[..., Awaitable[str]]


class Sink:
    """Where the webhooks go: each one's headers and body, in the order of arrival."""

    def __init__(self) -> None:
        self.url = ""
        self.hangs = False
        self.received: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def take(self, request: web.Request) -> web.Response:
        self.received.put_nowait((request.headers.get("Authorization", ""), await request.json()))
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(status=202)


@asynccontextmanager
async def listening() -> AsyncIterator[Sink]:
    sink = Sink()
    async with serve_site(web.post("/alerts", sink.take)) as url:
        sink.url = f"{url}/alerts"
        yield sink


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """In the relay's place."""
    async with listening() as sink:
        yield sink


@pytest.fixture
async def external() -> AsyncIterator[Sink]:
    """In the place of the dead man's switch."""
    async with listening() as sink:
        yield sink


@pytest.fixture
async def alertmanager(start: Start, sink: Sink, external: Sink, tmp_path: Path) -> str:
    """The product's own file on a clock 60 times as fast, with the sinks in the relay's and the switch's places."""
    (tmp_path / "token").write_text("a-secret-token-of-tests\n")
    (tmp_path / "switch").write_text(external.url + "\n")
    label_set = {
        "http://127.0.0.1:9912/alerts": sink.url,
        "/run/secrets/relay_token": str(tmp_path / "token"),
        "/run/secrets/dead_mans_switch_url": str(tmp_path / "switch"),
    }
    config = tmp_path / "alertmanager.yml"
    others, name, watchdog = FILE.read_text().partition("  - name: watchdog\n")
    config.write_text(scale_yaml(others + name + uncommented(watchdog), lambda value: label_set.get(value, value)))
    program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    assert program, "install alertmanager"
    storage = f"--storage.path={tmp_path / 'data'}"
    return await start(
        program, f"--config.file={config}", storage, "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="
    )


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        yield session


async def post(http: aiohttp.ClientSession, alertmanager: str, *alerts: dict[str, Any]) -> None:
    async with http.post(f"{alertmanager}/api/v2/alerts", json=alerts) as answer:
        assert answer.status == 200, await answer.text()


async def inhibitors(http: aiohttp.ClientSession, alertmanager: str) -> dict[frozenset[tuple[str, str]], list[str]]:
    """For each alert's labels, the alertnames of those that inhibit it."""
    async with http.get(f"{alertmanager}/api/v2/alerts") as answer:
        alerts = await answer.json()
    names = {alert["fingerprint"]: alert["labels"]["alertname"] for alert in alerts}
    return {
        frozenset(alert["labels"].items()): [names[source] for source in alert["status"]["inhibitedBy"]]
        for alert in alerts
    }


INHIBITED = [
    ("KMSCryptoModeNotKMS", "KMSCryptoNotReady"),
    ("KMSCryptoModeNotKMS", "KMSBackendOnEnvWhileKMSHealthy"),
    ("KMSHealthChecksFailing", "KMSCryptoModeNotKMS"),
    ("KMSHealthChecksFailing", "KMSCryptoNotReady"),
    ("KMSHealthChecksFailing", "KMSCryptoDownOnLocalKey"),
    ("KMSHealthChecksFailing", "KMSBackendMetricsUnreadable"),
    ("KMSProbeFailing", "KMSHighLatency"),
    ("KMSProbeFailing", "KMSProbeFlapping"),
    ("KMSProbeFailing", "KMSPermissionMissing"),
    ("KMSProbeFailing", "KMSKeyProblems"),
    ("KMSHighCryptoErrorRate", "KMSDecryptionErrorsBurst"),
]


async def test_of_any_two_alerts_side_by_side_only_a_known_consequence_is_inhibited(
    alertmanager: str, http: aiohttp.ClientSession
) -> None:
    names = [*ALERTS, "NodeDown"]  # and somebody else's
    # Each pair has a service of its own, so that no third alert meddles. An Alertmanager takes alerts in their order:
    # once it has seen the last cause, it has seen whatever else could have been one.
    pairs = sorted(itertools.permutations(names, 2), key=lambda pair: pair in INHIBITED)
    expected = {}
    for cause, other in pairs:
        labels = {"env": "production", "service": f"{cause} and {other}", "target": "ledger-kek"}
        expected[frozenset({**labels, "alertname": other}.items())] = [cause] if (cause, other) in INHIBITED else []
        expected[frozenset({**labels, "alertname": cause}.items())] = [other] if (other, cause) in INHIBITED else []
    await post(http, alertmanager, *({"labels": dict(labels)} for labels in expected))

    async with asyncio.timeout(TIMEOUT):
        while True:
            found = await inhibitors(http, alertmanager)
            if sum(map(len, found.values())) >= sum(map(len, expected.values())):
                break
            await asyncio.sleep(0.1)
    assert found == expected


async def test_a_cause_inhibits_its_consequence_in_its_env_and_service_only(
    alertmanager: str, http: aiohttp.ClientSession
) -> None:
    expected: dict[frozenset[tuple[str, str]], list[str]] = {}
    for cause, consequence in INHIBITED:
        label_set = {"env": "production", "service": f"{cause} and {consequence}", "target": "ledger-kek"}
        inhibited = {**label_set, "alertname": consequence}
        elsewhere = [{**inhibited, "env": "staging"}, {**inhibited, "service": f"not {cause} and {consequence}"}]
        if cause == "KMSProbeFailing":
            elsewhere.append({**inhibited, "target": "other-kek"})
        expected |= {frozenset(labels.items()): [] for labels in [*elsewhere, {**label_set, "alertname": cause}]}
        expected[frozenset(inhibited.items())] = [cause]
    await post(http, alertmanager, *({"labels": dict(labels)} for labels in expected))

    async with asyncio.timeout(TIMEOUT):
        while True:
            found = await inhibitors(http, alertmanager)
            if len(found) == len(expected) and sum(map(len, found.values())) >= len(INHIBITED):
                break
            await asyncio.sleep(0.1)
    assert found == expected, "only the consequence beside its cause is inhibited"


async def test_one_revoked_role_is_two_incidents_at_most(
    alertmanager: str, sink: Sink, http: aiohttp.ClientSession
) -> None:
    """Of everything that fires while an account may not use its key, people get the key's page and the service's."""
    service = {"env": "production", "service": "ledger"}
    key = {**service, "target": "ledger-kek"}
    missing = {**key, "alertname": "KMSPermissionMissing", "severity": "warning"}
    fired = [
        {**key, "alertname": "KMSProbeFailing", "severity": "critical"},
        {**service, "alertname": "KMSCryptoModeNotKMS", "severity": "critical"},
        {**service, "alertname": "KMSCryptoNotReady", "severity": "critical"},
        {**key, "alertname": "KMSProbeFlapping", "severity": "critical"},
        {**key, "alertname": "KMSKeyProblems", "severity": "warning"},
        {**key, "alertname": "KMSHighLatency", "severity": "warning", "operation": "encrypt"},
        *({**missing, "permission": f"cloudkms.cryptoKeyVersions.useTo{use}"} for use in ("Encrypt", "Decrypt")),
    ]
    await post(http, alertmanager, *({"labels": labels} for labels in fired))
    incidents: list[str] = []

    async def collect_until(count: int) -> None:
        while len(incidents) < count:
            _, body = await asyncio.wait_for(sink.received.get(), TIMEOUT)
            incidents.append(body["groupLabels"]["alertname"])

    await collect_until(2)
    # Another one after them: once it has waited, so has each of their groups.
    await post(http, alertmanager, {"labels": {"alertname": "KMSTest", "severity": "warning"}})
    await collect_until(3)
    assert set(incidents) == {"KMSProbeFailing", "KMSCryptoModeNotKMS", "KMSTest"}


@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("critical", "kms-critical"), pytest.param("warning", "kms-security", marks=pytest.mark.played)],
)
async def test_the_relay_is_notified_of_the_fire_and_of_its_end_with_the_bearer_token(
    severity: str, receiver: str, alertmanager: str, sink: Sink, http: aiohttp.ClientSession
) -> None:
    labels = {"alertname": "KMSTest", "severity": severity, "env": "production", "service": "ledger"}
    await post(http, alertmanager, {"labels": labels})
    firing = await asyncio.wait_for(sink.received.get(), TIMEOUT)
    over = {"startsAt": "2026-01-01T00:00:00Z", "endsAt": "2026-01-01T00:01:00Z"}
    await post(http, alertmanager, {"labels": labels, **over})
    resolved = await asyncio.wait_for(sink.received.get(), TIMEOUT)

    for (token, body), status in ((firing, "firing"), (resolved, "resolved")):
        assert token == "Bearer a-secret-token-of-tests"
        assert body["status"] == status
        assert body["receiver"] == receiver
        assert body["groupLabels"] == {key: labels[key] for key in ("alertname", "env", "service")}


async def test_a_service_that_goes_down_hours_after_it_lost_kms_pages_although_its_readiness_is_inhibited(
    alertmanager: str, sink: Sink, http: aiohttp.ClientSession
) -> None:
    async def pages(alertname: str) -> dict[str, Any]:
        labels = {"severity": "critical", "env": "production", "service": "ledger", "alertname": alertname}
        await post(http, alertmanager, {"labels": labels})
        return labels

    await pages("KMSCryptoModeNotKMS")
    _, first = await asyncio.wait_for(sink.received.get(), TIMEOUT)
    not_ready = await pages("KMSCryptoNotReady")
    await pages("KMSCryptoDownOnLocalKey")
    _, second = await asyncio.wait_for(sink.received.get(), TIMEOUT)

    assert first["groupLabels"]["alertname"] == "KMSCryptoModeNotKMS"
    assert (second["groupLabels"]["alertname"], second["receiver"]) == ("KMSCryptoDownOnLocalKey", "kms-critical")
    assert (await inhibitors(http, alertmanager))[frozenset(not_ready.items())] == ["KMSCryptoModeNotKMS"]


async def test_the_heartbeat_goes_on_reaching_the_relay_and_the_dead_mans_switch(
    alertmanager: str, sink: Sink, external: Sink, http: aiohttp.ClientSession
) -> None:
    await post(http, alertmanager, {"labels": {"alertname": "Watchdog", "severity": "none"}})
    for receiver, credentials in ((sink, "Bearer a-secret-token-of-tests"), (external, "")):
        for _ in range(3):
            token, body = await asyncio.wait_for(receiver.received.get(), TIMEOUT)
            assert (token, body["receiver"], body["status"]) == (credentials, "watchdog", "firing")


@pytest.mark.played
async def test_a_relay_that_hangs_keeps_no_heartbeat_from_the_dead_mans_switch(
    alertmanager: str, sink: Sink, external: Sink, http: aiohttp.ClientSession
) -> None:
    sink.hangs = True
    await post(http, alertmanager, {"labels": {"alertname": "Watchdog", "severity": "none"}})
    for _ in range(2):
        await asyncio.wait_for(external.received.get(), TIMEOUT)
    await asyncio.wait_for(sink.received.get(), TIMEOUT)  # the relay was asked as well
