"""`kms-crypto-smoke.yml`, every step of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http.server import serve
from tests.ops.workflows.conftest import WORKFLOWS, NewMachine

SMOKE = WORKFLOWS / "kms-crypto-smoke.yml"
TOKEN = "a-token-of-the-records"
METRICS = "crypto_mode 1\ncrypto_ready 1\ncrypto_init_timestamp_seconds 1\ncrypto_decryption_errors_total 0\n"


@pytest.fixture
async def backend() -> AsyncIterator[str]:
    """One that is well, whose records need TOKEN."""
    stored = b""

    async def answer(request: Request) -> Response:
        nonlocal stored
        if request.url.path == "/healthz":
            return JSONResponse({"crypto_mode": "kms", "crypto_ready": True})
        if request.url.path == "/metrics":
            return Response(METRICS)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=401)
        if request.method == "PUT":
            stored = await request.body()
            return Response(status_code=204)
        return Response(stored)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT"])])
    async with serve(app, Address("127.0.0.1", 0)) as address:
        yield f"http://{address}"


async def run(machine: NewMachine, backend: str, **given: Any) -> tuple[dict[str, str], str, str]:
    """How each step went, what all of them printed, and the summary."""
    runner = machine(variables={"KEYPULSE_BASE_URL": backend}, **given)
    steps = await asyncio.to_thread(runner.run, SMOKE)
    assert {path.name for path in runner.temp.iterdir()} <= {"keypulse"}, "no secret is left"
    return {step.name: step.outcome for step in steps}, "".join(step.output for step in steps), runner.summary


async def test_a_deployment_that_is_healthy_passes_and_its_summary_says_so(machine: NewMachine, backend: str) -> None:
    outcomes, printed, summary = await run(machine, backend, secrets={"KEYPULSE_RECORDS_TOKEN": TOKEN})
    assert {name for name, outcome in outcomes.items() if outcome == "success"} >= {"Install", "Smoke test"}, printed
    assert "failure" not in outcomes.values()
    assert outcomes["Plan"] == outcomes["The environment asks for an approval"] == "skipped", "it rotates nothing"
    assert printed.count("✓") == summary.count("✓") == 6
    assert TOKEN not in printed + summary


async def test_a_red_line_fails_the_job_and_the_result_is_kept(machine: NewMachine, backend: str) -> None:
    outcomes, printed, summary = await run(machine, backend, secrets={"KEYPULSE_RECORDS_TOKEN": "wrong"})
    assert [name for name, outcome in outcomes.items() if outcome == "failure"] == ["Smoke test"]
    assert outcomes["Keep the backup and the reports"] == outcomes["Remove the secrets"] == "success"
    assert "✗ a record is written and read: writing a record answers with HTTP 401" in printed
    assert "✗ a record is written and read" in summary


@pytest.mark.parametrize(
    ("state", "environment", "is_checked"),
    [("success", "production", True), ("failure", "production", False), ("success", "Preview", False)],
)
async def test_a_deployment_that_failed_or_is_only_a_preview_is_not_checked(
    machine: NewMachine, backend: str, state: str, environment: str, is_checked: bool
) -> None:
    event: dict[str, Any] = {
        "event_name": "deployment_status",
        "event": {"deployment_status": {"state": state}, "deployment": {"environment": environment}},
    }
    outcomes, _, _ = await run(machine, backend, event=event, secrets={"KEYPULSE_RECORDS_TOKEN": TOKEN})
    assert bool(outcomes) is is_checked


async def test_a_test_alert_without_an_alertmanager_is_refused(machine: NewMachine, backend: str) -> None:
    outcomes, printed, _ = await run(machine, backend, inputs={"test_alert": True})
    assert outcomes["Smoke test"] == "failure"
    assert "--test-alert needs --alertmanager" in printed
