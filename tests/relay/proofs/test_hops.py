"""A real Prometheus and a real Alertmanager are asked what became of a proof that did not come."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import yaml
from prometheus_client import CollectorRegistry

from services.relay.apis import AlertmanagerClient, ApiError, PrometheusClient
from services.relay.outbox.proofs import PATH_PROOFS, Hop, PathProof, accept_proofs, find_interval
from services.relay.outbox.store import Store
from services.relay.proofs.hops import HopFinder, _Interval
from services.relay.proofs.monitor import ProofMonitor
from tests.ops.conftest import Running
from tests.relay.monitors.monitored_outbox import MonitoredOutbox
from tests.relay.real_alertmanager import run_alertmanager
from tests.relay.served_relay import until
from tests.stores import each_store

T = TypeVar("T", PrometheusClient, AlertmanagerClient)
NOBODY: Final = "http://127.0.0.1:9"
EVERY: Final = 900.0
FIRST: Final = time.time() // EVERY * EVERY - 8 * EVERY
EXPORTER: Final = 'up{job="keypulse-exporter"}'
RELAY: Final = 'up{job="keypulse-relay"}'
RAISED: Final = 'keypulse_path_proof_started_timestamp_seconds{env="test",service="backend"}'
FIRED: Final = 'ALERTS{alertname="KMSPathProof",alertstate="firing",env="test",service="backend",severity="none"}'
SEEN: Final[list[tuple[Mapping[str, float], Hop, str]]] = [
    ({}, Hop.PROMETHEUS, "Prometheus scraped nothing then"),
    ({RELAY: 1}, Hop.EXPORTER, "Prometheus has no target of the job keypulse-exporter"),
    ({EXPORTER: 0}, Hop.EXPORTER, "Prometheus cannot scrape it"),
    ({EXPORTER: 1, RAISED: 0}, Hop.EXPORTER, "it began no proof"),
    ({EXPORTER: 1, RAISED: 1}, Hop.PROMETHEUS, "the rule KMSPathProof did not fire"),
    ({EXPORTER: 1, RAISED: 1, FIRED: 1}, Hop.PROMETHEUS, "Prometheus knows no Alertmanager"),
]
"""What Prometheus saw in an interval, and what it says of the proof; the intervals follow each other."""


def write_history(folder: Path) -> None:
    """As if Prometheus had scraped each 15 s; a proof is raised for two minutes."""
    lines = []
    for name in (EXPORTER, RELAY, RAISED, FIRED):
        for number, (seen, _, _) in enumerate(SEEN):
            times = range(15, int(EVERY) if name in {EXPORTER, RELAY} else 120, 15) if name in seen else ()
            lines += [f"{name} {seen[name]} {FIRST + number * EVERY + second:.0f}" for second in times]
    (folder / "history").write_text("\n".join([*lines, "# EOF"]) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "history"), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)


def write_configuration(folder: Path, rule: str) -> None:
    rules = [{"alert": rule, "expr": "vector(0) > 1"}]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": rules}]}))
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"]}))


async def test_prometheus_says_at_which_hop_a_proof_was_lost(tmp_path: Path, running: Running) -> None:
    write_configuration(tmp_path, "KMSPathProof")
    await asyncio.to_thread(write_history, tmp_path)
    program = (
        *(shutil.which("prometheus") or "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={tmp_path / 'data'}", "--web.listen-address=127.0.0.1:0", "--web.enable-lifecycle"),
    )
    async with running(*program) as url, closing_client(PrometheusClient(url)) as client:
        finder = HopFinder(client, (), {})
        await until(lambda: is_loaded(client, "KMSPathProof"))
        for number, (seen, hop, error) in enumerate(SEEN):
            found = await finder.find(FIRST + number * EVERY, EVERY, {})
            assert (found.hop, error in found.error) == (hop, True), (seen, found)
        found = await finder.find(FIRST + 5 * EVERY, EVERY, {"env": "other"})
        assert (found.hop, "it began no proof" in found.error) == (Hop.EXPORTER, True), "a proof of another env"
        write_configuration(tmp_path, "Other")
        async with aiohttp.request("POST", f"{url}/-/reload") as answer:
            assert answer.status == 200
        await until(lambda: is_loaded(client, "Other"))
        found = await finder.find(FIRST + 4 * EVERY, EVERY, {})
        assert (found.hop, "Prometheus has no rule KMSPathProof" in found.error) == (Hop.PROMETHEUS, True), found


async def test_what_does_not_answer_lost_the_proof() -> None:
    async with (
        closing_client(PrometheusClient(NOBODY)) as prometheus,
        closing_client(AlertmanagerClient(NOBODY)) as peer,
    ):
        found = await HopFinder(prometheus, [peer], {}).find(FIRST, EVERY, {})
        assert (found.hop, found.error.startswith("Prometheus gives no answer: ")) == (Hop.PROMETHEUS, True)
        found = await HopFinder(None, [peer], {}).find(FIRST, EVERY, {})
        assert (found.hop, found.error.startswith(f"no answer: {NOBODY}: ")) == (Hop.ALERTMANAGER, True)


@asynccontextmanager
async def closing_client(client: T) -> AsyncIterator[T]:
    try:
        yield client
    finally:
        await client.close()


async def is_loaded(client: PrometheusClient, rule: str) -> bool:
    try:
        return await client.has_rule(rule)
    except ApiError:  # it listens before it answers
        return False


ROUTE: Final[dict[str, Any]] = {
    "receiver": "elsewhere",
    "routes": [{"matchers": ['alertname="KMSPathProof"'], "receiver": "kms-proof"}],
}
RULE: Final = {"source_matchers": ['alertname="Maintenance"'], "target_matchers": ['severity="none"'], "equal": ["env"]}
WEBHOOK: Final = {"url": "http://127.0.0.1:9/alerts", "http_config": {"authorization": {"credentials": "a-secret"}}}


def alertmanager_file(**changes: Any) -> str:
    receivers = [{"name": "elsewhere"}, {"name": "kms-proof", "webhook_configs": [WEBHOOK]}]
    return yaml.safe_dump({"route": ROUTE, "receivers": receivers, **changes})


@asynccontextmanager
async def asked(url: str) -> AsyncIterator[Callable[[], Awaitable[tuple[Hop, str]]]]:
    """Asks it for the proof of the interval that has just begun; Prometheus is not known."""
    every = 600.0
    async with closing_client(AlertmanagerClient(url)) as client:
        finder, labels = HopFinder(None, [client], {}), {"env": "test", "service": "backend"}

        async def ask() -> tuple[Hop, str]:
            hop, error = await finder.find(time.time() - every / 4, every, labels)
            return hop, error

        yield ask


async def test_alertmanager_says_at_which_hop_a_proof_was_lost(tmp_path: Path) -> None:
    async with run_alertmanager(tmp_path, alertmanager_file(inhibit_rules=[RULE])) as url, asked(url) as ask:
        assert await ask() == (Hop.UNKNOWN, "set messages.prometheus_url so that the hop can be named")
        await post(url, "alerts", [{"labels": {"alertname": "Maintenance", "env": "other"}}])
        assert (await ask())[0] is Hop.UNKNOWN, "an alert of another environment inhibits nothing"
        await post(url, "alerts", [{"labels": {"alertname": "Maintenance", "env": "test"}}])
        assert await ask() == (Hop.ALERTMANAGER, "inhibited by Maintenance")
        for matcher, is_silenced in (
            ({"name": "service", "value": "other", "isRegex": False, "isEqual": True}, False),
            ({"name": "alertname", "value": "KMSPath.+", "isRegex": True, "isEqual": True}, True),
        ):
            now = datetime.now(UTC)
            times = {"startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
            body = {"matchers": [matcher], "createdBy": "a test", "comment": "known", **times}
            number = (await post(url, "silences", body))["silenceID"]
            hop, error = await ask()
            assert (hop, error.startswith(f"silenced by {number} until ")) == (Hop.ALERTMANAGER, is_silenced)
        (tmp_path / "alertmanager.yml").write_text(alertmanager_file(route={"receiver": "elsewhere"}))
        async with aiohttp.request("POST", f"{url}/-/reload") as answer:
            assert answer.status == 200
        async with aiohttp.request("DELETE", f"{url}/api/v2/silence/{number}") as answer:
            assert answer.status == 200
        hop, error = await ask()
        assert error.startswith("silenced by"), "a silence that has ended was there when the proof came"


async def test_a_stray_request_that_is_refused_names_no_hop_where_other_webhooks_are_accepted() -> None:
    start = time.time() - EVERY
    for answers, hop in (
        ({401: start + 60}, Hop.WEBHOOK),
        ({202: start + 30, 401: start + 60}, Hop.WEBHOOK),
        ({401: start + 60, 202: start + 90}, Hop.UNKNOWN),
        ({401: start + 60, 200: start + 90, 202: start - 90}, Hop.UNKNOWN),
        ({401: start + 60, 400: start + 90}, Hop.WEBHOOK),
        ({401: start - 60}, Hop.UNKNOWN),
    ):
        found = await HopFinder(None, (), answers).find(start, EVERY, {})
        assert found.hop is hop, answers
        assert ("this relay refused webhooks (401)" in found.error) is (answers[401] > start)
    async with (
        closing_client(PrometheusClient(NOBODY)) as prometheus,
        closing_client(AlertmanagerClient(NOBODY)) as peer,
    ):
        found = HopFinder(prometheus, [peer], {401: 60.0, 202: 90.0})._judge_webhooks(_Interval(0.0, EVERY))
        assert "refused webhooks (401)" in found.error, "the one of two with a wrong token"


async def test_a_receiver_without_a_webhook_is_named(tmp_path: Path) -> None:
    async with run_alertmanager(tmp_path, alertmanager_file(route={"receiver": "elsewhere"})) as url, asked(url) as ask:
        text = "KMSPathProof goes to the receiver elsewhere, which has no webhook with a token"
        assert await ask() == (Hop.ALERTMANAGER, text)


@each_store
async def test_when_alertmanager_had_the_proof_is_stored_soon_after_it_came(tmp_path: Path, store: Store) -> None:
    async with run_alertmanager(tmp_path, alertmanager_file()) as url, closing_client(AlertmanagerClient(url)) as peer:
        started = find_interval(time.time(), EVERY)
        for each in (started - EVERY, started):
            labels = {"alertname": "KMSPathProof", "service": f"{each:.0f}"}
            await post(url, "alerts", [{"labels": labels, "annotations": {"proof_started": f"{each:.0f}"}}])
        proof = PathProof(started, "test", "backend", started)
        await accept_proofs(store, [proof], ["slack"], every=EVERY, received_at=time.time())
        relay = MonitoredOutbox(store, CollectorRegistry())
        await ProofMonitor(relay.publisher, HopFinder(None, [], {}), [peer]).check()
        (row,) = await store.read(PATH_PROOFS.fetch_all)
        assert row.alertmanager_at is not None
        assert row.received_at - 60 < row.alertmanager_at <= row.received_at


async def post(url: str, path: str, body: Any) -> Any:
    async with aiohttp.request("POST", f"{url}/api/v2/{path}", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json() if path == "silences" else None
