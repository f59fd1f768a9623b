"""`keypulse-audit sla` and the objectives, on a real Prometheus with a month that has known outages."""

import asyncio
import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from ops.audit import __main__ as command
from ops.audit.sla import Counted, Minute, Month, assess, build_queries
from shared.smoke.http_client import open_client
from shared.smoke.monitoring import query_api
from tests.ops import exposed_metrics
from tests.ops.conftest import Start
from tests.ops.rules import PROMETHEUS
from tests.ops.test_rules import metrics_in
from tests.sites import serve_site

RULES_PAGE = PROMETHEUS.parents[1] / "docs/rules.md"
AUDIT = PROMETHEUS.parents[1] / "docs/AUDIT.md"
STEP = 15
FAILURES = (
    # from, minutes, reason, cause
    ("2026-03-01T07:50", 20, "unavailable", ""),  # Pacific Time's March begins at 08:00
    ("2026-03-01T10:00", 12, "unavailable", ""),
    ("2026-03-01T11:00", 4, "unavailable", ""),
    ("2026-03-01T12:00", 20, "permission_denied", "role_missing"),
    ("2026-03-01T14:00", 10, "timeout", "dns"),
    ("2026-03-01T15:00", 6, "timeout", ""),
)
SCRAPED = (
    ("2026-03-01T07:30", "2026-03-01T08:30"),
    ("2026-03-01T09:30", "2026-03-01T13:00"),
    ("2026-03-01T13:30", "2026-03-01T16:00"),
)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def list_samples() -> Iterator[tuple[str, str, float, int]]:
    """Name, labels, value and time: each 15 s four calls succeed, half of them in over 1 s, or two fail."""
    own = 'env="production",service="backend",target="ledger",instance="a:9911"'
    calls: Counter[str] = Counter()
    for begins, ends in SCRAPED:
        for now in range(at(begins), at(ends), STEP):
            broken = [f for f in FAILURES if at(f[0]) <= now - STEP < at(f[0]) + f[1] * 60]
            calls.update(encrypt=2, decrypt=0 if broken else 2, slow=0 if broken else 2)
            for _, _, reason, cause in broken:
                calls[reason] += 2
                failure = f'{own},operation="encrypt",reason="{reason}",cause="{cause}"'
                yield "kms_probe_failure_info", failure, 1, now
            for operation in ("encrypt", "decrypt"):
                yield "kms_operations_total", f'{own},operation="{operation}"', calls[operation], now
            for reason in ("unavailable", "timeout", "permission_denied"):
                labels = f'{own},operation="encrypt",reason="{reason}"'
                yield "kms_probe_failures_total", labels, calls[reason], now
            key = 'provider="gcp",key="projects/acme-prod/locations/global/keyRings/app/cryptoKeys/ledger"'
            yield "kms_target_info", f"{own},{key}", 1, now
            yield "kms_probe_success", own, not broken, now
            durations = f'{own},operation="encrypt"'
            yield "kms_operation_duration_seconds_count", durations, 2 * calls["slow"], now
            yield "kms_operation_duration_seconds_bucket", f'{durations},le="1"', calls["slow"], now
            channel = 'env="production",channel="slack"'
            yield "relay_delivery_duration_seconds_count", channel, calls["encrypt"], now
            yield "relay_delivery_duration_seconds_bucket", f'{channel},le="60"', calls["encrypt"] * 0.875, now
            yield "relay_deliveries_total", f'{channel},outcome="dead"', calls["encrypt"] * 0.25, now


@pytest.fixture
async def prometheus(start: Start, tmp_path: Path) -> str:
    families: dict[str, list[str]] = {}
    for name, labels, value, now in list_samples():
        families.setdefault(name, []).append(f"{name}{{{labels}}} {value:g} {now}")
    lines = [line for name, samples in families.items() for line in (f"# TYPE {name} unknown", *samples)]
    (tmp_path / "history").write_text("\n".join([*lines, "# EOF\n"]))
    one_block = "--max-block-duration=24h"  # each takes promtool a second
    paths = (str(tmp_path / "history"), str(tmp_path / "data"))
    backfill = ["promtool", "tsdb", "create-blocks-from", "openmetrics", one_block, *paths]
    await asyncio.to_thread(subprocess.run, backfill, check=True, capture_output=True)
    (tmp_path / "prometheus.yml").write_text("{}")
    kept = "--storage.tsdb.retention.time=100y"
    arguments = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data", kept)
    return await start("prometheus", *arguments, "--web.listen-address=127.0.0.1:0")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, ["sla", "--month", "2026-03", *arguments])


async def test_a_month_is_counted_minute_by_minute_with_its_evidence_and_the_objectives_hold(
    prometheus: str, tmp_path: Path
) -> None:
    (shown,) = re.findall(r"^keypulse-audit (sla .*)", AUDIT.read_text(), re.MULTILINE)
    shown = shown.replace("http://127.0.0.1:9090", prometheus.replace("://", "://me:secret@"))
    arguments = shlex.split(shown.replace("--evidence ", f"--evidence {tmp_path}/"))
    result = await asyncio.to_thread(CliRunner().invoke, command.main, arguments)

    assert result.exit_code == 1, result.output  # 99.99 % was missed
    assert (tmp_path / "sla.md").read_text() == result.output
    documented = AUDIT.read_text().partition("```\n# Cloud KMS in")[2].partition("```")[0].strip().splitlines()[1:]
    assert [line for line in documented if line not in result.output.splitlines()] == []
    written = (tmp_path / "sla.json").read_text()
    assert "secret" not in result.output + written
    (document,) = json.loads(written)["projects"]
    assert (document["begins"], document["ends"]) == ("2026-03-01T08:00Z", "2026-04-01T07:00Z")
    assert document["claim_until"] == "2026-05-01T07:00Z"
    assert document["minutes"] == 31 * 24 * 60 - 60  # daylight saving time began
    assert document["monthly_uptime_percentage"] == pytest.approx(100 * (1 - (10 + 12 + 6) / 44580))
    assert document["without_timeouts"] == pytest.approx(100 * (1 - (10 + 12) / 44580))
    assert [(each["percentage"], each["is_met"]) for each in document["objectives"]] == [(99.99, False), (99.95, False)]
    periods = [(p["begins"], p["minutes"], p["as"], p["is_counted"]) for p in document["periods"]]
    assert [period for period in periods if period[2] != "gap"] == [
        ("2026-03-01T08:00Z", 10, "downtime", True),
        ("2026-03-01T10:00Z", 12, "downtime", True),
        ("2026-03-01T11:00Z", 4, "downtime", False),
        ("2026-03-01T12:00Z", 20, "own fault", False),
        ("2026-03-01T14:00Z", 10, "own fault", False),
        ("2026-03-01T15:00Z", 6, "downtime", True),
    ]
    assert ("2026-03-01T13:00Z", 30, "gap", False) in periods
    outage = document["periods"][2]
    assert (outage["valid_requests"], outage["failed_requests"], outage["failures"]) == (96, 96, {"unavailable": 96})
    assert len(outage["each"]) == 12

    wrong = await asyncio.to_thread(run, "--prometheus", prometheus, "--project", "acme-other")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "Prometheus knows no call to a key of acme-other in 2026-03; check --project" in wrong.stderr
    options = ("--prometheus", prometheus, "--project", "acme-prod")
    met = await asyncio.to_thread(run, *options, "--objective", "99.9", "--time-zone", "UTC")
    assert met.exit_code == 0, met.output
    await check_objectives(prometheus)


async def check_objectives(prometheus: str) -> None:
    """The queries of both files, as sloth and others ask them, give the ratios that are known."""
    sloth = yaml.safe_load((PROMETHEUS / "slo/sloth.yml").read_text())
    openslo = list(yaml.safe_load_all((PROMETHEUS / "slo/openslo.yml").read_text()))
    now = f"{at('2026-03-01T15:30')}"
    async with open_client(prometheus) as client:

        async def value(query: str) -> float:
            (series,) = (await query_api(client, "query", {"query": query, "time": now}))["result"]
            return float(series["value"][1])

        def query(metric: str) -> Any:
            return slo["spec"]["indicator"]["spec"]["ratioMetric"][metric]["metricSource"]["spec"]["query"]

        for slo in openslo[1:]:
            (spec,) = [each for each in sloth["slos"] if each["name"] == slo["metadata"]["name"]]
            events = {key: text.replace("{{.window}}", "1h") for key, text in spec["sli"]["events"].items()}
            assert slo["spec"]["objectives"][0]["target"] == pytest.approx(spec["objective"] / 100)
            assert slo["spec"]["description"] == spec["description"]
            assert f"| `{spec['name']}` | {spec['objective']:g} % |" in RULES_PAGE.read_text()
            error = await value(events["error_query"]) / await value(events["total_query"])
            assert error == pytest.approx(ERRORS[spec["name"]], abs=0.01)
            good = await value(query("good")) / await value(query("total"))
            assert good == pytest.approx(GOOD[spec["name"]])


def test_the_evidence_and_the_objectives_read_only_what_is_exposed(tmp_path: Path) -> None:
    texts = [
        *build_queries("acme-prod").values(),
        *re.findall(r"query: (sum.*|count.*)", (PROMETHEUS / "slo/openslo.yml").read_text()),
        *re.findall(r"^ {8,}(?:- |[+] )?(sum.*)", (PROMETHEUS / "slo/sloth.yml").read_text(), re.MULTILINE),
    ]
    names = {name for text in texts for name in metrics_in(text)}
    exposed = exposed_metrics.names([*exposed_metrics.by_the_exporter(), *exposed_metrics.by_a_relay(tmp_path)])
    assert names - exposed == set()
    assert len(names) > 8


ERRORS = {"kms-round-trips": 0.1, "kms-latency": 0.5, "notification-delivery": 0.3}
"""In the hour before 15:30: 6 minutes of timeouts; half of the calls; an eighth late and a quarter dead, of 1.25."""
GOOD = {"kms-round-trips": 1, "kms-latency": 0.5, "notification-delivery": 0.7}


@pytest.mark.parametrize(
    ("requests", "failed", "minutes", "is_counted"),
    [
        (2, 2, 5, True),  # ten requests in five minutes
        (1, 1, 9, False),
        (1, 1, 10, True),
        (20, 2, 60, False),  # a tenth is not more than a tenth
        (20, 2.1, 60, True),
        (20, 20, 4, False),
    ],
)
def test_downtime_is_more_than_a_tenth_in_five_minutes_with_ten_requests(
    requests: float, failed: float, minutes: int, is_counted: bool
) -> None:
    down = [Minute(at, requests, {"unavailable": failed}) for at in range(0, minutes * 60, 60)]
    up = [Minute(at, requests) for at in range(minutes * 60, 6000, 60)]
    month = Month("2026-03", 0, 6000)
    document = assess([*down, *up], "acme-prod", month, (99.95,), "http://127.0.0.1:9090")
    assert document["monthly_uptime_percentage"] == (100 - minutes if is_counted else 100)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--month", "2026-13"), "expected a month such as 2026-03, got '2026-13'"),
        (("--evidence", "sla.pdf"), "expected FILE.md or FILE.json, got sla.pdf"),
        (("--time-zone", "Nowhere/None"), "expected one such as UTC"),
        (("--prometheus", "http://me:secret@127.0.0.1?q"), "expected a URL such as https://HOST, without a query"),
        (("--month", f"{datetime.now(UTC) + timedelta(days=1):%Y-%m}"), "expected a month that is over"),
    ],
)
def test_an_invalid_option_is_refused_with_what_is_expected(arguments: tuple[str, ...], text: str) -> None:
    result = run("--prometheus", "http://127.0.0.1:1", "--project", "acme-prod", *arguments)
    assert (result.exit_code, text in " ".join(result.stderr.split())) == (2, True), result.output
    assert "secret" not in result.output


def test_a_prometheus_that_does_not_answer_is_a_failure() -> None:
    result = run("--prometheus", "http://127.0.0.1:1", "--project", "acme-prod")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be reached" in result.stderr


@pytest.mark.played
async def test_no_month_is_counted_from_a_part_of_the_data(start: Start, tmp_path: Path) -> None:
    """As where a Prometheus, or a Thanos, cannot ask one of its stores: it answers with the others, and a warning."""
    unreachable = [{"url": "http://127.0.0.1:1/read", "read_recent": True}]
    (tmp_path / "prometheus.yml").write_text(json.dumps({"remote_read": unreachable}))
    paths = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data")
    url = await start("prometheus", *paths, "--web.listen-address=127.0.0.1:0")
    result = await asyncio.to_thread(run, "--prometheus", url, "--project", "acme-prod")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "answers with a part of the data: remote_read: " in result.stderr
    assert "repair what it names, and count again" in result.stderr


def test_a_minute_without_a_call_is_not_up() -> None:
    """As between two probes that are minutes apart."""
    assert Minute(0, 0.0).classify() is Counted.GAP
    assert Minute(0, 0.0, {"unavailable": 1}).classify() is Counted.DOWNTIME  # it failed before the call was counted
    assert Minute(0, 0.0, {"permission_denied": 1}).classify() is Counted.OWN_FAULT


FIRST: Any = at("2026-03-01T08:01")
"""Of Prometheus's answers: the end of the month's first minute."""


NO_EVIDENCE: list[Any] = [
    {"status": "success"},
    {"status": "success", "data": None},
    {"status": "success", "data": {"result": []}, "warnings": 5},
    {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [FIRST, "1"]}]}},
    *(
        {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": labels, "values": [sample]}]}}
        for labels, sample in (
            ({}, [FIRST + 7, "1"]),
            ({}, [12, "1"]),
            ({}, [FIRST, "NaN"]),
            ({}, [FIRST, "+Inf"]),
            ({}, [FIRST, "-1"]),
            ({}, [FIRST, "many"]),
            ({}, [FIRST, "1"]),  # of failures, without a reason
            ({"reason": "a |\n# Claim", "cause": ""}, [FIRST, "1"]),
            ({"reason": "timeout", "cause": "\x1b[31m"}, [FIRST, "1"]),
        )
    ),
]


@pytest.mark.parametrize(
    "answer",
    [pytest.param(each, marks=[pytest.mark.played] * (each is not NO_EVIDENCE[-1])) for each in NO_EVIDENCE],
)
async def test_an_answer_that_is_no_number_of_each_minute_is_no_evidence(answer: Any) -> None:
    asked: list[str] = []

    async def give(request: web.Request) -> web.Response:
        asked.append(request.query.get("partial_response", ""))
        return web.json_response(answer)

    async with serve_site(web.get("/api/v1/query_range", give)) as url:
        result = await asyncio.to_thread(run, "--prometheus", url, "--project", "acme-prod")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.exception
    assert "query" in result.stderr
    assert set(asked) == {"false"}


def test_what_kms_did_not_answer_itself_is_no_valid_request() -> None:
    denied = Minute(0, 10, {"permission_denied": 8, "unavailable": 1}, {""})
    assert (denied.count(), denied.classify()) == ((2, 1), Counted.DOWNTIME)
    unreachable = Minute(0, 10, {"unavailable": 9}, {"connect"})
    assert (unreachable.count(), unreachable.classify()) == ((1, 0), Counted.OWN_FAULT)
    one_exporter_only = Minute(0, 10, {"unavailable": 9}, {"connect", ""})
    assert one_exporter_only.classify() is Counted.DOWNTIME
