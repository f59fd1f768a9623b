"""A proof from the exporter's metric to the relay's webhook, by a real Prometheus and a real Alertmanager."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo.time_scale import scale_yaml
from tests.ops.conftest import Start
from tests.ops.routing import FILE
from tests.ops.rules import PROMETHEUS
from tests.ops.test_alertmanager import TIMEOUT, listening
from tests.ops.test_prometheus import Scraped, serving

RAISED = 2.0
"""Seconds: the two minutes of a proof. It would be sent twice within them if it were repeated."""
FLUSHED = 5.0
"""Seconds: five group_intervals. Until Alertmanager has flushed the end of a proof, the next one counts as sent."""
ARRIVED = 30.0
"""Seconds: half of repeat_interval, after which Alertmanager also sends what it took for sent."""


@pytest.mark.played
async def test_each_proof_is_one_webhook_with_the_time_at_which_it_began(start: Start, tmp_path: Path) -> None:
    async with listening() as relay, serving(Scraped()) as exporter, aiohttp.ClientSession() as http:
        (tmp_path / "token").write_text("a-secret-token-of-tests\n")
        places = {"http://127.0.0.1:9912/alerts": relay.url, "/run/secrets/relay_token": str(tmp_path / "token")}
        places["127.0.0.1:9911"] = exporter.address
        program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
        assert program, "install alertmanager"

        def write_copy(file: Path, name: str) -> Path:
            copy = tmp_path / name
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(scale_yaml(file.read_text(), lambda value: places.get(value, value)))
            return copy

        alertmanager = await start(
            program,
            f"--config.file={write_copy(FILE, 'alertmanager.yml')}",
            f"--storage.path={tmp_path / 'alerts'}",
            "--web.listen-address=127.0.0.1:0",
            "--cluster.listen-address=",
        )
        places["127.0.0.1:9093"] = alertmanager.removeprefix("http://")
        write_copy(PROMETHEUS / "rules/relay.yml", "rules/relay.yml")
        await start(
            "prometheus",
            f"--config.file={write_copy(PROMETHEUS / 'prometheus.yml', 'prometheus.yml')}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        )

        async def is_active() -> bool:
            async with http.get(f"{alertmanager}/api/v2/alerts?filter=alertname=KMSPathProof") as answer:
                return bool(await answer.json())

        async def receive() -> dict[str, Any]:
            async with asyncio.timeout(ARRIVED):
                while True:
                    _, body = await relay.received.get()
                    if body["receiver"] == "kms-proof":
                        return body

        async def prove(began: int) -> dict[str, Any]:
            exporter.exposed = f'keypulse_path_proof_started_timestamp_seconds{{service="ledger"}} {began}\n'
            body = await receive()
            await asyncio.sleep(RAISED)
            return body

        first = await prove(1_800_000_000)
        exporter.exposed = 'keypulse_path_proof_started_timestamp_seconds{service="ledger"} 0\n'
        async with asyncio.timeout(TIMEOUT):
            while await is_active():  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(0.1)
        await asyncio.sleep(FLUSHED)
        second = await prove(1_800_000_300)
        further = [relay.received.get_nowait()[1]["receiver"] for _ in range(relay.received.qsize())]

    assert "kms-proof" not in further
    for body, began in ((first, "1800000000"), (second, "1800000300")):
        (alert,) = body["alerts"]
        assert (body["status"], alert["annotations"]["proof_started"]) == ("firing", began)
