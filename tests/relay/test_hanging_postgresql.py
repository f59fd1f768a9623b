"""The relay while PostgreSQL hangs: what it says of itself, what it answers, and how it stops."""

import asyncio
from functools import partial
from pathlib import Path

import aiohttp
import psycopg
import pytest

from services.relay.intake import endpoint
from services.relay.model import Status
from services.relay.outbox import store
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import AnswerTimeout
from tests import processes
from tests.postgres import Postgres
from tests.relay.outbox.frozen_postgresql import frozen
from tests.relay.served_relay import TOKEN, Scripted, payload, post, served, settings, until, webhook_of
from tests.relay.test_process import listens_at, relay_process
from tests.stopwatch import Stopwatch

NOBODY = "http://127.0.0.1:9/"


@pytest.fixture
def database(own_postgres: Postgres) -> DatabaseUrl:
    return own_postgres.database("relay")


async def test_it_says_so_and_answers_within_bounds(
    tmp_path: Path, own_postgres: Postgres, database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store._REPLY_TIMEOUT < endpoint.ANSWER_SECONDS < 9, "Alertmanager gives up after 10 s"
    monkeypatch.setattr(store, "_REPLY_TIMEOUT", 2.5)
    monkeypatch.setattr(store, "AnswerTimeout", partial(AnswerTimeout, 2.5))
    monkeypatch.setattr(endpoint, "ADMISSION_SECONDS", 2.3)
    monkeypatch.setattr(endpoint, "ANSWER_SECONDS", 2.7)  # a third of each
    channel = Scripted()
    configuration = settings(tmp_path, {"one": channel}, database=database.render_as_string(hide_password=False))
    async with served(configuration) as client:
        assert (await post(client, payload(1)))[0] == 202
        await until(lambda: len(channel.sent) == 1)
        assert await _ready(client) == (200, "ready\n")
        with frozen(own_postgres):
            text, seconds = await _scraped(client)
            assert seconds < 3
            assert "relay_outbox_deliveries{" not in text
            assert 'relay_webhooks_total{code="202"} 1.0' in text
            watch = Stopwatch()
            storm = [webhook_of(group=str(number)) for number in range(endpoint.MAX_CONCURRENT_WEBHOOKS + 32)]
            answers = await asyncio.gather(*(post(client, body) for body in storm))
            assert {code for code, _ in answers} == {503}
            assert all("send it again" in str(answer) for _, answer in answers)
            assert watch.seconds < 4
            status, reason = await _ready(client)
            assert status == 503
            assert reason.startswith("the outbox cannot commit: ")
            assert (await _scraped(client))[1] < 1  # what is known to hang is not asked
        await until(lambda: _is_ready(client), 15)
        assert (await post(client, payload(3)))[0] in {200, 202}
        # What was answered 503 may be committed nevertheless, and is then delivered as well.
        await until(lambda: any(each.event.status is Status.RESOLVED for each in channel.sent))


@pytest.mark.played
async def test_a_stop_answers_what_waits_and_ends_in_good_order(
    tmp_path: Path, own_postgres: Postgres, database: DatabaseUrl
) -> None:
    url = database.render_as_string(hide_password=False)
    process = await asyncio.to_thread(relay_process, tmp_path, NOBODY, database=url)
    address = await asyncio.to_thread(listens_at, process)
    async with aiohttp.ClientSession(f"http://{address}", headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert (await post(client, payload(1)))[0] == 202
        with frozen(own_postgres):
            waiting = [asyncio.create_task(post(client, payload(number))) for number in (3, 4, 5)]
            await _scraped(client)  # 2 s later they are in hand, and 6 s too early for their own bound
            assert not any(task.done() for task in waiting)
            watch = Stopwatch()
            process.terminate()
            answers = await asyncio.gather(*waiting)
            log = await asyncio.to_thread(processes.end_and_read, process)
            seconds = watch.seconds
    assert [code for code, _ in answers] == [503] * 3
    assert process.returncode == 0, log
    assert seconds < 14
    assert "Traceback" not in log
    assert "leases could not be released at stop; they expire by themselves" in log
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() in {(1,), (2,), (3,), (4,)}
        assert connection.execute("SELECT count(*) FROM deliveries WHERE state = 'delivered'").fetchone() == (0,)


async def _ready(client: aiohttp.ClientSession) -> tuple[int, str]:
    async with client.get("/-/ready") as response:
        return response.status, await response.text()


async def _is_ready(client: aiohttp.ClientSession) -> bool:
    return (await _ready(client))[0] == 200


async def _scraped(client: aiohttp.ClientSession) -> tuple[str, float]:
    watch = Stopwatch()
    async with client.get("/metrics") as response:
        return await response.text(), watch.seconds
