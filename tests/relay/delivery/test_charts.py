"""Current values and charts come from the configured Prometheus alone, in bounded time, or the message goes without."""

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from PIL import Image

from services.relay.apis import AlertRule, PrometheusClient, Series
from services.relay.delivery import charts as module
from services.relay.delivery.charts import Charts, Picture, measure
from services.relay.model import Alert, DeliveryTask, Event, Message, PartOutcome, Status
from tests.relay.served_relay import event_of, until
from tests.sites import serve_site

Start = Callable[..., Awaitable[str]]
HOSTILE = "a\"b\\c{}$1 '`\n<!channel> $\\frac{1}{2}$"
NOW = time.time() // 15 * 15


def alert_of(name: str, operation: str = "encrypt", status: str = "firing", **labels: str) -> Alert:
    own = {"alertname": name, "env": "production", "service": "backend", "operation": operation, **labels}
    return Alert(
        status=Status(status),
        labels=own,
        annotations={},
        starts_at=datetime.fromtimestamp(NOW - 600, UTC),
        ends_at=None if status == "firing" else datetime.fromtimestamp(NOW - 60, UTC),
        generator_url="http://attacker.example.org/graph?g0.expr=vector(1)",
        fingerprint=f"{name} {operation}",
    )


def event(*alerts: Alert, **group: str) -> Event:
    labels = {"alertname": alerts[0].labels["alertname"], "env": "production", "service": "backend", **group}
    return replace(event_of(), alerts=alerts, group_labels=labels)


def message(event: Event, seq: int = 1) -> Message:
    task = DeliveryTask("delivery", "incident", 1, "slack", datetime.now(UTC), last_event_seq=seq)
    return Message(task, event, ())


def write_history(folder: Path) -> None:
    """An hour of latencies, as if Prometheus had scraped them."""
    lines = ["# TYPE latency gauge"]
    for operation, env in (("encrypt", "production"), ("decrypt", "production"), ("encrypt", "staging")):
        labels = f'env="{env}",service="backend",operation="{operation}"'
        for age in range(3600, -60, -15):
            value = 1.84 if operation == "encrypt" and env == "production" and age < 700 else 0.25
            lines.append(f"latency{{{labels}}} {value} {NOW - age:.0f}")
    (folder / "history").write_text("\n".join([*lines, "# EOF"]) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(folder / "history"), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
async def prometheus(tmp_path: Path, start: Start) -> str:
    """A real one: two rules of one name, one with a threshold that is no number, one with a name that is none."""
    await asyncio.to_thread(write_history, tmp_path)
    hour = "avg_over_time(latency[5m])"
    rules = [
        {"alert": "Slow", "expr": f"{hour} > 5", "labels": {"severity": "critical"}},
        {"alert": "Slow", "expr": f"{hour} > 1", "labels": {"severity": "warning"}},
        {"alert": "Slower", "expr": f'{hour} > on (service, env) (latency{{operation="decrypt"}} * 4)'},
        {"alert": "Owned", "expr": f"{hour} > 1", "labels": {"service": "ledger"}},
        {"alert": "Scalar", "expr": "time() - 10 > bool 1"},
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": rules}]}))
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"]})
    )
    url = await start(
        shutil.which("prometheus") or "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    )

    async def is_ready() -> bool:
        async with aiohttp.request("GET", f"{url}/api/v1/rules") as answer:
            return "Slower" in await answer.text()

    await until(is_ready)
    return url


@pytest.fixture
async def client(prometheus: str) -> AsyncIterator[PrometheusClient]:
    client = PrometheusClient(prometheus, None)
    yield client
    await client.close()


@asynccontextmanager
async def charts_of(url: str, zone: str = "Europe/Berlin") -> AsyncIterator[Charts]:
    charts = Charts(PrometheusClient(url, None), zone, lambda: NOW)
    try:
        yield charts
    finally:
        await charts.close()


async def test_an_alert_gets_its_own_series_with_its_rules_threshold(client: PrometheusClient) -> None:
    both = event(alert_of("Slow", severity="warning"), alert_of("Slow", "decrypt", "resolved", severity="warning"))
    found = await measure(client, both, NOW, "UTC")
    assert found is not None
    assert found.current_values == {
        "Slow encrypt": "1.84 (fires if > 1)",
        "Slow decrypt": "0.25 (fires if > 1)",
    }
    assert [line.label for line in found.spec.lines] == ["encrypt", "decrypt"]
    assert len(found.spec.lines[0].points) > 100  # also of the time before it fired
    assert (found.spec.firing_from, found.spec.firing_to) == (NOW - 600, None)
    ended = await measure(client, event(alert_of("Slow", "decrypt", "resolved", severity="warning")), NOW, "UTC")
    assert ended is not None
    assert ended.spec.firing_to == NOW - 60

    critical = await measure(client, event(alert_of("Slow", severity="critical")), NOW, "UTC")
    assert critical is not None
    assert [each.text for each in critical.spec.thresholds] == ["fires if > 5"]
    computed = await measure(client, event(alert_of("Slower")), NOW, "UTC")
    assert computed is not None
    assert [at_last for _, at_last in computed.spec.thresholds[0].points[-1:]] == [1.0]
    # A label that Prometheus adds at its edge is none of the series, and a scalar has none at all.
    external = await measure(client, event(alert_of("Slow", severity="warning", cluster="eu"), cluster="eu"), NOW, "")
    assert external is not None
    assert len(external.spec.lines) == 1
    owned = await measure(client, event(alert_of("Owned", service="ledger"), service="ledger"), NOW, "UTC")
    assert owned is not None
    assert owned.current_values == {"Owned encrypt": "1.84 (fires if > 1)"}
    scalar = await measure(client, event(alert_of("Scalar")), NOW, "UTC")
    assert scalar is not None
    for other in (
        alert_of("Slow", severity="info"),
        alert_of("None"),
        alert_of(HOSTILE),
        alert_of("Slow", HOSTILE, severity="warning", env=HOSTILE),
    ):
        group = {"env": other.labels["env"]}
        assert await measure(client, event(other, **group), NOW, "UTC") is None


async def test_the_name_of_a_label_is_never_a_part_of_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    async def read_range(_client: PrometheusClient, expression: str, *_span: float) -> list[Series]:
        requests.append(expression)
        return []

    async def find_rule(*_: Any) -> AlertRule:
        return AlertRule("latency > 1", frozenset())

    monkeypatch.setattr(PrometheusClient, "read_range", read_range)
    monkeypatch.setattr(PrometheusClient, "find_rule", find_rule)
    group = {"service.name": "x", "env) or up or on (env": "y"}
    assert (
        await measure(PrometheusClient("http://127.0.0.1:9", None), event(alert_of("Slow"), **group), NOW, "") is None
    )
    assert requests
    assert not any("up" in each or "service.name" in each for each in requests)


async def test_channels_share_one_chart_and_a_storm_gets_a_few(
    prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 60.0)  # on a busy machine the start of the process alone takes ten
    async with charts_of(prometheus) as charts:
        one = message(event(alert_of("Slow", severity="warning")))
        first, second = await asyncio.gather(charts.make(one, 60), charts.make(one, 60))
        assert first is second
        assert first.outcome is PartOutcome.ADDED
        assert first.png is not None
        with Image.open(BytesIO(first.png)) as image:
            assert (image.format, image.size) == ("PNG", (1200, 560))
        assert len(first.png) < 200_000
        assert first.current_values == {"Slow encrypt": "1.84 (fires if > 1)"}

        storm = await asyncio.gather(*(charts.make(message(one.event, 10 + n), 60) for n in range(200)))
        outcomes = [picture.outcome for picture in storm]
        assert outcomes.count(PartOutcome.SKIPPED) >= 196
        assert charts._worker is not None
        running = charts._worker._running
    assert running is not None
    assert running.process.returncode is not None


class ScriptedPrometheus:
    """A Prometheus that does what the test says."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        return await self.answer(request)


@asynccontextmanager
async def scripted_prometheus() -> AsyncIterator[tuple[ScriptedPrometheus, str]]:
    scripted = ScriptedPrometheus()
    async with serve_site(web.route("*", "/{path:.*}", scripted.handle)) as url:
        yield scripted, url


def answering(status: int = 200, headers: Mapping[str, str] | None = None, text: str = "") -> Any:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, text=text)

    return answer


async def test_one_that_hangs_delays_one_message_and_is_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(module, "_REFILL_SECONDS", 600.0)

    async def hang(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with scripted_prometheus() as (scripted, url), charts_of(url) as charts:
        scripted.answer = hang
        one = event(alert_of("Slow"))
        assert (await charts.make(message(one), 0.05)).outcome is PartOutcome.LATE  # as long as its attempt allows
        assert (await charts.make(message(one), 9)).outcome is PartOutcome.LATE
        assert (await charts.make(message(one, 2), 9)).outcome is PartOutcome.SKIPPED
        assert await charts.read_values(message(one, 2), 9) == {}
        assert scripted.requests == ["/api/v1/rules"]
        charts._paused_until = 0.0
        monkeypatch.setattr(module, "MAX_SECONDS", 60.0)
        scripted.answer = answering(text='{"data": {"groups": []}}')
        outcomes = [(await charts.make(message(one, 3 + number), 60)).outcome for number in range(9)]
        assert outcomes == [PartOutcome.ABSENT] * 4 + [PartOutcome.SKIPPED] * 5


@pytest.mark.parametrize(
    "answer",
    [
        answering(302, {"Location": "/elsewhere"}),
        answering(503),
        answering(401),
        answering(text="<html>"),
        answering(text='{"data": {"groups": [{"rules": [{"name": "Slow", "query": "up > 1"}]}]}}'),
        answering(text='{"data": {"groups": [], "x": "' + "x" * 5_000_000 + '"}}'),
    ],
    ids=["redirect", "unavailable", "login", "HTML", "rules alone", "large"],
)
async def test_what_is_no_answer_leaves_the_message_without(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 60.0)
    async with scripted_prometheus() as (scripted, url), charts_of(url) as charts:
        scripted.answer = answer
        picture = await charts.make(message(event(alert_of("Slow"))), 60)
        assert picture == Picture(PartOutcome.FAILED)
        assert "/elsewhere" not in scripted.requests


async def test_where_nothing_is_drawn_in_time_the_values_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("MAX_SECONDS", 60.0), ("MAX_VALUES_SECONDS", 60.0), ("_MARGIN", 30.0)):
        monkeypatch.setattr(module, name, seconds)  # what is not waited for is quick, however busy the machine is
    loop, read_time = asyncio.get_running_loop(), asyncio.get_running_loop().time
    rules = '{"data": {"groups": [{"rules": [{"name": "Slow", "query": "up > 1"}]}]}}'
    points = f'{{"data": {{"resultType": "matrix", "result": [{{"metric": {{}}, "values": [[{NOW:.0f}, "3"]]}}]}}}}'

    old = points.replace(f"{NOW:.0f}", f"{NOW - 900:.0f}")

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=rules if request.path.endswith("rules") else points)

    async with scripted_prometheus() as (scripted, url), charts_of(url) as charts:
        scripted.answer = answer
        assert charts._worker is not None
        ended = threading.Event()
        monkeypatch.setattr(charts._worker, "ask", lambda *_: ended.wait(60))  # it draws nothing
        slow = message(event(alert_of("Slow")))
        drawing = asyncio.create_task(charts.make(slow, 90))
        assert await charts.read_values(slow, 60) == {"Slow encrypt": "3 (fires if > 1)"}
        assert not drawing.done(), "what shows no chart does not wait for it"
        monkeypatch.setattr(loop, "time", lambda: read_time() + 60)
        picture = await drawing
        assert picture == Picture(PartOutcome.LATE, {"Slow encrypt": "3 (fires if > 1)"})
        ended.set()
        charts._paused_until = 0.0
        charts._worker.close()
        charts._worker = None  # as where matplotlib is not installed
        picture = await charts.make(message(event(alert_of("Slow")), 2), 9)
        assert picture == Picture(PartOutcome.ADDED, {"Slow encrypt": "3 (fires if > 1)"})
        points = old
        picture = await charts.make(message(event(alert_of("Slow")), 3), 9)
        assert picture == Picture(PartOutcome.ADDED, {})  # it is no current value
