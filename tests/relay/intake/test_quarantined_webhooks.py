"""Webhooks that are not accepted, over real HTTP: what is stored of them, and what is counted."""

from pathlib import Path
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from services.relay.outbox import quarantine
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import clean_for_database
from shared.sql import database_url
from tests.relay.intake.test_endpoint import HEAD, connect
from tests.relay.served_relay import Scripted, metric, payload, post, served, settings, until


@pytest.mark.parametrize(
    "source", ["keypulse", "x" * 201, "keypulse\0"], ids=["the relay's own", "too long", "with a zero byte"]
)
async def test_a_source_that_nobody_may_have_is_400_and_its_body_is_kept(tmp_path: Path, source: str) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        code, answer = await post(client, payload(1), f"/alerts?source={quote(source)}")
        assert code == 400
        assert answer["error"] == "source: expected at most 200 characters without a zero byte, and not keypulse"
        assert await metric(client, "relay_webhooks_total", code="400") == 1
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
        (entry,) = await quarantine.list_entries(store)
        assert await quarantine.read_body(store, entry.id) == payload(1)
    assert (entry.source, entry.code, entry.reason) == (clean_for_database(source)[:200], 400, answer["error"])


async def test_a_sender_that_goes_away_within_its_body_is_logged_and_is_no_answer_of_ours(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        _, writer = await connect(client)
        with capture_logs() as logs:
            writer.write(f"{HEAD}Content-Length: 9\r\n\r\n{{".encode())
            await writer.drain()
            writer.close()
            await until(lambda: any("client disconnected" in line["event"] for line in logs))
        async with client.get("/metrics") as metrics:
            answered = [line for line in (await metrics.text()).splitlines() if line.startswith("relay_webhooks_total")]
        assert {line.split()[-1] for line in answered} == {"0.0"}
        assert (await post(client, payload(1)))[0] == 202
