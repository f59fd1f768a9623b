"""Prometheus, Grafana, Alertmanager and the relay, where they answer what they should not."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.check import CheckOutcome, format_line
from shared.config.secret_file import SecretFile
from shared.smoke.alerting import check_alertmanager, check_relay
from shared.smoke.monitoring import RECORDINGS, check_grafana, check_prometheus
from tests.shared.smoke.conftest import Answering, Handler

RULES = {"rules/kms.yml": ["KMSHighLatency"], "rules/keys.yml": ["KMSCanaryLost", "KMSProbeFailing"]}
UP = {"labels": {"job": "keypulse-exporter", "instance": "a:9911"}, "health": "up", "lastError": ""}
RUNBOOK = "https://git.ledger.test/ops/acme.md#"
LOADED = [
    {"name": name, "health": "ok", "annotations": {"runbook_url": RUNBOOK + name.lower()}}
    for names in RULES.values()
    for name in names
]


def prometheus(changed: Mapping[str, Any], ready: int = 200) -> Handler:
    """One that is well, but for the `data` of the paths that a test changes."""
    data = {
        "targets": {"activeTargets": [UP]},
        "rules": {"groups": [{"rules": LOADED}]},
        "alertmanagers": {"activeAlertmanagers": [{"url": "http://b:9093/api/v2/alerts"}]},
        "query": {"result": [{"value": [0, "1"]}]},
        **changed,
    }

    async def answer(request: Request) -> Response:
        if request.url.path == "/-/ready":
            return Response(status_code=ready)
        found = data[request.url.path.rpartition("/")[2]]
        if isinstance(found, Response):
            return found
        return JSONResponse({"status": "success", "data": found})

    return answer


async def test_a_prometheus_that_is_healthy_passes(answering: Answering) -> None:
    async with answering(prometheus({})) as url:
        results = await check_prometheus(url, RULES)
    assert {result.outcome for result in results} == {CheckOutcome.PASSED}
    assert len(results) == 5 + len(RECORDINGS)


DOWN = {**UP, "health": "down", "lastError": "connection refused"}
BROKEN = {"name": "KMSHighLatency", "health": "err", "lastError": "many-to-many matching not allowed"}


@pytest.mark.parametrize(
    ("changed", "failed", "sentence"),
    [
        (
            {"targets": {"activeTargets": []}},
            "Prometheus scrapes the exporter",
            "no target of the job keypulse-exporter",
        ),
        (
            {"targets": {"activeTargets": [UP, DOWN]}},
            "Prometheus scrapes the exporter",
            "1 of 2 targets of keypulse-exporter cannot be scraped, such as a:9911: connection refused",
        ),
        (
            {"rules": {"groups": [{"rules": LOADED[:2]}]}},
            "rules are loaded",
            "1 rules of rules/keys.yml are not loaded, such as KMSProbeFailing; add rules/keys.yml to rule_files",
        ),
        (
            {"rules": {"groups": [{"rules": [*LOADED, BROKEN]}]}},
            "rules are loaded",
            "KMSHighLatency cannot be evaluated: many-to-many",
        ),
        ({"rules": JSONResponse({}, status_code=500)}, "rules are loaded", "/api/v1/rules answers with HTTP 500"),
        ({"rules": Response("<html>")}, "rules are loaded", "/api/v1/rules answers with something that is not JSON"),
        ({"alertmanagers": {"activeAlertmanagers": []}}, "Prometheus knows an Alertmanager", "alerts to nobody"),
        ({"query": {"result": [{"value": [0, "0"]}]}}, f"{RECORDINGS[0]} has data", "it is 0 for every service"),
        ({"query": {"result": []}}, f"{RECORDINGS[0]} has data", "it returns nothing"),
    ],
)
async def test_each_defect_of_a_prometheus_is_red_in_its_line(
    answering: Answering, changed: dict[str, Any], failed: str, sentence: str
) -> None:
    async with answering(prometheus(changed)) as url:
        results = await check_prometheus(url, RULES)
    first = next(result for result in results if result.outcome is CheckOutcome.FAILED)
    assert first.name == failed
    assert sentence in format_line(first)


PLACEHOLDER = {"runbook_url": "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#kmshighlatency"}
RECORDING = {"name": "KMSProbeFailing", "health": "ok", "type": "recording"}


async def test_a_rule_with_a_placeholders_runbook_is_red_in_production_alone(answering: Answering) -> None:
    rules = [{**LOADED[0], "annotations": PLACEHOLDER}, LOADED[1], RECORDING]
    async with answering(prometheus({"rules": {"groups": [{"rules": rules}]}})) as url:
        red = [format_line(r) for r in await check_prometheus(url, RULES) if r.outcome is CheckOutcome.FAILED]
        elsewhere = await check_prometheus(url, RULES, is_production=False)
    (line,) = red
    assert f"1 of 2 lead to a placeholder, such as KMSHighLatency to {PLACEHOLDER['runbook_url']}; replace" in line
    assert line.startswith("✗ rules lead to your runbook: ")
    assert all(result.is_ok for result in elsewhere)


async def test_where_only_keys_are_probed_no_recording_of_a_backend_is_searched_for(answering: Answering) -> None:
    async with answering(prometheus({})) as url:
        results = await check_prometheus(url, RULES, has_backend=False)
    assert [result.name for result in results if "has data" in result.name] == [f"{RECORDINGS[0]} has data"]


async def test_a_prometheus_that_is_not_ready_is_one_red_line(answering: Answering) -> None:
    async with answering(prometheus({}, ready=503)) as url:
        results = await check_prometheus(url, RULES)
    assert [r.outcome for r in results] == [CheckOutcome.FAILED] + [CheckOutcome.SKIPPED] * (len(results) - 1)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (200, "✓ the dashboard can be reached"),
        (401, "it refuses to be read .HTTP 401.; give the token of a service account: --grafana-token-file"),
        (404, "it has no dashboard kms-crypto-health; import ops/grafana/dashboards/kms-health.json"),
        (500, "it answers with HTTP 500; see Grafana's log"),
    ],
)
async def test_the_dashboard_is_searched_for_by_its_uid(answering: Answering, status: int, sentence: str) -> None:
    requests = []

    async def grafana(request: Request) -> Response:
        requests.append(request.url.path)
        return JSONResponse({"dashboard": {}}, status_code=status)

    async with answering(grafana) as url:
        (result,) = await check_grafana(f"{url}/grafana/")
    assert requests == ["/grafana/api/dashboards/uid/kms-crypto-health"]
    assert re.search(sentence, format_line(result))


async def test_an_alertmanager_that_starts_is_not_ready(answering: Answering) -> None:
    async def starting(_request: Request) -> Response:
        return Response("still starting", status_code=503)

    async with answering(starting) as url:
        (result,) = await check_alertmanager(url)
    expected = "it is not ready (HTTP 503): still starting; wait until it has started, or see its log"
    assert format_line(result) == f"✗ Alertmanager is ready: {expected}"


@pytest.mark.parametrize("answer", ["<html>log in</html>", "{}", "[]"])
async def test_a_server_that_answers_everything_alike_is_taken_for_no_service(
    answering: Answering, answer: str
) -> None:
    async def anything(_request: Request) -> Response:
        return Response(answer)

    async with answering(anything) as url:
        checks = (await check_alertmanager(url), await check_relay(url), await check_grafana(url))
    assert [results[-1].outcome for results in checks] == [CheckOutcome.FAILED] * 3


async def test_a_relay_whose_api_refuses_the_token_says_which_one_it_needs(
    answering: Answering, tmp_path: Path
) -> None:
    async def relay(request: Request) -> Response:
        if request.url.path == "/-/ready":
            return Response("ready")
        is_authorized = request.headers.get("authorization") == "Bearer right"
        return JSONResponse({"deliveries": []}, status_code=200 if is_authorized else 401)

    (tmp_path / "right").write_text("right")
    async with answering(relay) as url:
        refused = await check_relay(url)
        passed = await check_relay(url, SecretFile(tmp_path / "right"))
    assert (
        format_line(refused[1])
        == "✗ the relay's API: it refuses us (HTTP 401); give a token of a viewer: --relay-token-file"
    )
    assert [result.is_ok for result in passed] == [True, True]
