"""The whole product, real Prometheus and Alertmanager included: green, and red in the right line for each fault."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from ops.demo import stack
from ops.demo.processes import Ports
from ops.demo.stack import Stack
from tests import processes

LIGHTS = ("passed", "failed")
CRITICAL = ("slack-critical", "email-secops", "email-oncall", "pagerduty")


async def smoke(running: Stack, *arguments: str) -> dict[str, list[str]]:
    """The names of the checks, by how they went."""
    url = running.ports.build_url
    addresses = ("--prometheus", url("prometheus"), "--alertmanager", url("alertmanager"), "--relay", url("relay"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops.smoke", "--json", "--base-url", url("backend"), *addresses, *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await processes.finish(process)
    read = json.loads(printed)
    assert process.returncode == (0 if read["ok"] else 1)
    return {light: [c["name"] for c in read["checks"] if c["outcome"] == light] for light in LIGHTS}


@pytest.mark.played
async def test_a_deployment_that_is_healthy_is_green_and_each_fault_is_red_in_its_line() -> None:
    async with stack.run_stack(Ports.pick_free()) as running:
        everything = await smoke(running, "--test-alert", "critical")
        assert everything["failed"] == []
        assert {f"delivered on {channel}" for channel in CRITICAL} < set(everything["passed"])

        async with a_channel_that_refuses(running):
            broken = await smoke(running, "--test-alert", "critical", "--timeout", "30s")
            assert broken["failed"] == ["delivered on pagerduty"]
            others = {f"delivered on {channel}" for channel in CRITICAL if channel != "pagerduty"}
            assert others < set(broken["passed"]), "the other channels got it"

        async with alertmanager_has_a_wrong_token(running):
            broken = await smoke(running, "--test-alert", "--timeout", "3s")
            assert broken["failed"] == ["the test alert arrives at the relay"]
            assert "Alertmanager takes a test alert" in broken["passed"]

        faults: list[tuple[Callable[[Stack], AbstractAsyncContextManager[None]], str]] = [
            (kms_denied, "backend uses KMS"),
            (a_rule_file_is_missing, "rules are loaded"),
            (the_exporter_hangs, "Prometheus scrapes the exporter"),
            (stop_backend, "backend answers"),
        ]
        for fault, line in faults:
            async with fault(running), asyncio.timeout(60):
                while not red(line, (await smoke(running))["failed"]):
                    pass  # each look takes a while


def red(line: str, failed: list[str]) -> bool:
    """Whether it fails first; what a backend that is gone leaves without data may follow."""
    return failed[:1] == [line] and all("has data" in name for name in failed[1:])


@asynccontextmanager
async def a_channel_that_refuses(running: Stack) -> AsyncIterator[None]:
    await _post(running, "stand_ins", "/api/faults", {"provider": "pagerduty", "kind": "error", "error": "no"})
    yield
    async with running.http.delete(running.ports.build_url("stand_ins") + "/api/faults") as answer:
        assert answer.status in {200, 204}, await answer.text()


@asynccontextmanager
async def alertmanager_has_a_wrong_token(running: Stack) -> AsyncIterator[None]:
    """Of all that it sends: the token is no longer that of the relay, which answers 401."""
    file = running.folder / "alertmanager.yml"
    content = file.read_text()
    for text in (content.replace("/relay_token", "/slack_token"), content):
        file.write_text(text)
        async with running.http.post(running.ports.build_url("alertmanager") + "/-/reload") as answer:
            assert answer.status == 200, await answer.text()
        if text != content:
            yield


@asynccontextmanager
async def kms_denied(running: Stack) -> AsyncIterator[None]:
    await _post(running, "faults", "/faults", {"kind": "denied", "operation": "Encrypt"})
    yield
    async with running.http.delete(running.ports.build_url("faults") + "/faults") as answer:
        assert answer.status in {200, 204}, await answer.text()


@asynccontextmanager
async def a_rule_file_is_missing(running: Stack) -> AsyncIterator[None]:
    file = running.folder / "rules/keys.yml"
    content = file.read_text()
    file.unlink()
    _signal(running, "prometheus", signal.SIGHUP)
    yield
    file.write_text(content)
    _signal(running, "prometheus", signal.SIGHUP)


@asynccontextmanager
async def the_exporter_hangs(running: Stack) -> AsyncIterator[None]:
    _signal(running, "exporter", signal.SIGSTOP)
    yield
    _signal(running, "exporter", signal.SIGCONT)


@asynccontextmanager
async def stop_backend(running: Stack) -> AsyncIterator[None]:
    _signal(running, "backend", signal.SIGTERM)
    yield


def _signal(running: Stack, name: str, number: signal.Signals) -> None:
    os.kill(running.processes._running[name].pid, number)


async def _post(running: Stack, part: str, path: str, document: dict[str, Any]) -> None:
    async with running.http.post(running.ports.build_url(part) + path, json=document) as answer:
        assert answer.status == 201, await answer.text()
