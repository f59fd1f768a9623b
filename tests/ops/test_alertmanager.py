"""The routing file, judged by amtool and by a real Alertmanager."""

import asyncio
import itertools
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from ops.demo.scale import scale_yaml

OPS = Path(__file__).parents[2] / "ops"
FILE = OPS / "alertmanager/alertmanager.yml"
CONFIG = yaml.safe_load(FILE.read_text())
(RULES,) = yaml.safe_load((OPS / "prometheus/rules/kms.yml").read_text())["groups"]
PATIENCE = 20.0
Start = Callable[..., Awaitable[str]]
Labels = dict[str, str]


def amtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["amtool", *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_amtool_accepts_the_file_although_the_secrets_are_not_there() -> None:
    answer = amtool("check-config", FILE)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_what_is_ready_to_uncomment_is_valid_once_it_is_uncommented(tmp_path: Path) -> None:
    yaml_in_comment = re.compile(r"^( +)# ( *(?:- )?[a-z_]+:(?: \S.*)?)$", re.MULTILINE)
    uncommented, blocks = yaml_in_comment.subn(r"\1\2", FILE.read_text())
    assert blocks > 0
    file = tmp_path / "alertmanager.yml"
    file.write_text(uncommented)
    answer = amtool("check-config", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    integrations = {r["name"]: set(r) - {"name"} for r in yaml.safe_load(uncommented)["receivers"]}
    assert integrations == {
        "kms-critical": {"webhook_configs", "pagerduty_configs"},
        "kms-security": {"webhook_configs"},
        "direct": {"email_configs", "slack_configs", "pagerduty_configs"},
        "watchdog": {"webhook_configs"},
    }


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=KMSTest", "severity=warning"], "kms-security"),
        (["alertname=KMSTest"], "kms-security"),
        (["alertname=KMSTest", "severity=critical"], "kms-critical"),
        (["alertname=KMSCryptoModeNotKMS", "severity=critical"], "kms-critical"),
        (["alertname=KMSCryptoNotReady", "severity=critical"], "kms-critical"),
        (["alertname=KMSHealthChecksFailing", "severity=critical"], "kms-critical"),
        (["alertname=KMSHighLatency", "severity=warning"], "kms-security"),
        (["alertname=RelayDown", "severity=critical"], "direct"),
        (["alertname=RelayBacklog", "severity=warning"], "direct"),
        (["alertname=Watchdog"], "watchdog"),
        (["alertname=NodeDown", "severity=critical"], "kms-security"),
        (["alertname=NotKMS", "severity=critical"], "kms-security"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value,
)
def test_an_alert_goes_to_one_receiver(labels: list[str], receiver: str) -> None:
    answer = amtool("config", "routes", "test", f"--config.file={FILE}", *labels)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == receiver


def test_the_waits_are_the_contracts() -> None:
    waits = ("group_wait", "group_interval", "repeat_interval")
    watchdog, _relay, kms = CONFIG["route"]["routes"]
    (critical,) = kms["routes"]
    (slow_to_repair,) = critical["routes"]
    assert CONFIG["route"]["group_by"] == ["alertname", "env", "service"]
    assert [CONFIG["route"][wait] for wait in waits] == ["30s", "5m", "2h"]
    assert [kms[wait] for wait in waits] == ["30s", "5m", "2h"]
    assert [critical[wait] for wait in waits] == ["10s", "2m", "30m"]
    assert slow_to_repair == {
        "matchers": ['alertname=~"KMSCryptoModeNotKMS|KMSCryptoNotReady"'],
        "repeat_interval": "2h",
    }
    assert [watchdog[wait] for wait in waits] == ["0s", "1m", "1m"]


class Sink:
    """Where the webhooks go: each one's headers and body, in the order of arrival."""

    def __init__(self) -> None:
        self.url = ""
        self.received: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def take(self, request: web.Request) -> web.Response:
        self.received.put_nowait((request.headers.get("Authorization", ""), await request.json()))
        return web.Response(status=202)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    sink = Sink()
    app = web.Application()
    app.router.add_post("/alerts", sink.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sink.url = f"http://127.0.0.1:{runner.addresses[0][1]}/alerts"
    yield sink
    await runner.cleanup()


@pytest.fixture
async def alertmanager(start: Start, sink: Sink, tmp_path: Path) -> str:
    """The product's own file on a clock 60 times as fast, with the sink in the relay's place."""
    (tmp_path / "token").write_text("a-secret-token\n")
    here = {"http://127.0.0.1:9912/alerts": sink.url, "/run/secrets/relay_token": str(tmp_path / "token")}
    config = tmp_path / "alertmanager.yml"
    config.write_text(scale_yaml(FILE.read_text(), lambda value: here.get(value, value)))
    program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    assert program, "install alertmanager"
    storage = f"--storage.path={tmp_path / 'data'}"
    return await start(
        program, f"--config.file={config}", storage, "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="
    )


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
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
    ("KMSHealthChecksFailing", "KMSCryptoModeNotKMS"),
    ("KMSHealthChecksFailing", "KMSCryptoNotReady"),
    ("KMSProbeFailing", "KMSHighLatency"),
    ("KMSHighCryptoErrorRate", "KMSDecryptionErrorsBurst"),
]


async def test_of_any_two_alerts_side_by_side_only_a_known_consequence_is_inhibited(
    alertmanager: str, http: aiohttp.ClientSession
) -> None:
    names = [rule["alert"] for rule in RULES["rules"] if "alert" in rule]
    names += ["KMSProbeFailing", "RelayDown", "Watchdog"]  # known to the routing, though no rule sends them yet
    names += ["NodeDown"]  # somebody else's
    # Each pair has a service of its own, so that no third alert meddles. An Alertmanager takes alerts in their order:
    # once it has seen the last cause, it has seen whatever else could have been one.
    pairs = sorted(itertools.permutations(names, 2), key=lambda pair: pair in INHIBITED)
    expected = {}
    for cause, other in pairs:
        labels = {"env": "production", "service": f"{cause} and {other}", "target": "ledger-kek"}
        expected[frozenset({**labels, "alertname": other}.items())] = [cause] if (cause, other) in INHIBITED else []
        expected[frozenset({**labels, "alertname": cause}.items())] = [other] if (other, cause) in INHIBITED else []
    await post(http, alertmanager, *({"labels": dict(labels)} for labels in expected))

    async with asyncio.timeout(PATIENCE):
        while True:
            found = await inhibitors(http, alertmanager)
            if sum(map(len, found.values())) >= sum(map(len, expected.values())):
                break
            await asyncio.sleep(0.1)
    assert found == expected


@pytest.mark.parametrize(("cause", "consequence"), INHIBITED)
async def test_a_cause_inhibits_its_consequence_in_its_env_and_service_only(
    cause: str, consequence: str, alertmanager: str, http: aiohttp.ClientSession
) -> None:
    here = {"env": "production", "service": "ledger", "target": "ledger-kek", "severity": "warning"}
    inhibited = {**here, "alertname": consequence}
    elsewhere = [{**inhibited, "env": "staging"}, {**inhibited, "service": "payments"}]
    if cause == "KMSProbeFailing":
        elsewhere.append({**inhibited, "target": "other-kek"})
    source = {**here, "alertname": cause}
    await post(http, alertmanager, *({"labels": labels} for labels in [source, inhibited, *elsewhere]))

    async with asyncio.timeout(PATIENCE):
        while True:
            found = await inhibitors(http, alertmanager)
            if len(found) == len(elsewhere) + 2 and found[frozenset(inhibited.items())]:
                break
            await asyncio.sleep(0.1)
    assert found.pop(frozenset(inhibited.items())) == [cause]
    assert set(found) == {frozenset(labels.items()) for labels in [source, *elsewhere]}
    assert not any(found.values()), "only the consequence beside its cause is inhibited"


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "kms-critical"), ("warning", "kms-security")])
async def test_the_relay_is_told_of_the_fire_and_of_its_end_with_the_bearer_token(
    severity: str, receiver: str, alertmanager: str, sink: Sink, http: aiohttp.ClientSession
) -> None:
    labels = {"alertname": "KMSTest", "severity": severity, "env": "production", "service": "ledger"}
    await post(http, alertmanager, {"labels": labels})
    firing = await asyncio.wait_for(sink.received.get(), PATIENCE)
    over = {"startsAt": "2026-01-01T00:00:00Z", "endsAt": "2026-01-01T00:01:00Z"}
    await post(http, alertmanager, {"labels": labels, **over})
    resolved = await asyncio.wait_for(sink.received.get(), PATIENCE)

    for (token, body), status in ((firing, "firing"), (resolved, "resolved")):
        assert token == "Bearer a-secret-token"
        assert body["status"] == status
        assert body["receiver"] == receiver
        assert body["groupLabels"] == {key: labels[key] for key in ("alertname", "env", "service")}
