"""`POST /alerts` over real HTTP: who may, how much, and what happens while the store cannot commit."""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from services.relay.app import running
from services.relay.intake import endpoint, quarantine
from services.relay.metrics import Metrics
from services.relay.outbox import rejected
from services.relay.outbox.store import opened
from services.relay.sending.here import here
from shared.sql import location
from tests.relay.scripted import (
    TOKEN,
    Scripted,
    metric,
    payload,
    post,
    reaches,
    served,
    settings,
    until,
    webhook_of,
)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process that holds the write lock, as a backup or a person with a shell might."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def quarantined(folder: Path) -> list[tuple[rejected.Kept, bytes | None]]:
    """What is kept, the newest first, each with its body."""
    async with opened(location.sqlite(folder / "relay.db"), lambda: 0.0) as store:
        return [(kept, await rejected.body(store, kept.id)) for kept in await rejected.kept(store)]


async def first_line(client: aiohttp.ClientSession, head: str) -> str:
    """The status line of the answer to a request of which only this head is ever sent."""
    base = client._base_url
    assert base is not None
    reader, writer = await asyncio.open_connection(base.host, base.port)
    writer.write(head.replace("\n", "\r\n").encode())
    try:
        async with asyncio.timeout(5):
            return (await reader.readline()).decode().strip()
    finally:
        writer.close()


@pytest.mark.parametrize("authorization", ["", "Authorization: Bearer wrong\n", "Authorization: Basic !\n"])
async def test_no_or_a_wrong_token_is_401_and_the_body_is_never_waited_for(tmp_path: Path, authorization: str) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        head = f"POST /alerts HTTP/1.1\nHost: relay\n{authorization}Content-Length: 1000000\n\n"
        assert await first_line(client, head) == "HTTP/1.1 401 Unauthorized"
        await reaches(client, 1, "relay_webhooks_total", code="401")


async def test_another_address_is_403_before_its_token_is_looked_at(tmp_path: Path) -> None:
    configuration = settings(tmp_path, {"one": Scripted()}, auth={"allow_from": ["10.0.0.0/8", "::ffff:0:0/96"]})
    (tmp_path / "token").unlink()
    async with served(configuration) as client:
        assert (await post(client, payload(1)))[0] == 403
        head = "POST /alerts HTTP/1.1\nHost: relay\nContent-Length: 1000000\n\n"
        assert await first_line(client, head) == "HTTP/1.1 403 Forbidden"
        assert await metric(client, "relay_webhooks_total", code="403") == 2


async def test_an_address_of_an_allowed_network_may_send(tmp_path: Path) -> None:
    configuration = settings(tmp_path, {"one": Scripted()}, auth={"allow_from": ["10.0.0.0/8", "127.0.0.0/8"]})
    async with served(configuration) as client:
        assert (await post(client, payload(1)))[0] == 202


async def test_a_token_file_that_cannot_be_read_is_503_and_works_again_once_it_can(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        (tmp_path / "token").rename(tmp_path / "gone")
        assert (await post(client, payload(1)))[0] == 503
        (tmp_path / "gone").rename(tmp_path / "token")
        assert (await post(client, payload(1)))[0] == 202


async def test_what_is_no_webhook_is_400_with_the_reason_and_its_body_is_kept(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        code, answer = await post(client, b'{"version": "4", "receiver": 7}', "/alerts?source=eu")
        assert code == 400
        assert answer["error"].startswith("receiver: Input should be a valid string")
        assert await metric(client, "relay_webhooks_total", code="400") == 1
    ((kept, body),) = await quarantined(tmp_path)
    assert (kept.source, kept.code, body) == ("eu", 400, b'{"version": "4", "receiver": 7}')
    assert kept.reason == answer["error"]


async def test_a_body_over_the_limit_is_413_and_its_beginning_is_kept(tmp_path: Path) -> None:
    # In process: a client over a socket may see the connection reset before it has sent all and reads the answer.
    async with running(settings(tmp_path, {"one": Scripted()}), sending=here) as app:
        client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
        body = b"x" * (endpoint.BODY_LIMIT + 1)
        response = await asyncio.to_thread(client.post, "/alerts", content=body)
        assert response.status_code == 413
        assert (await asyncio.to_thread(client.post, "/alerts", content=body[1:])).status_code == 400
    (largest, _), (over, beginning) = await quarantined(tmp_path)
    assert (over.code, largest.code) == (413, 400)
    assert over.size == largest.size == quarantine.CUT
    assert beginning == body[: quarantine.CUT]


async def test_a_large_webhook_is_taken_whole(tmp_path: Path) -> None:
    channel = Scripted()
    text = "ü" * 5_000_000
    async with served(settings(tmp_path, {"one": channel})) as client:
        assert (await post(client, webhook_of(commonAnnotations={"description": text})))[0] == 202
        await until(lambda: len(channel.sent) == 1)
    assert channel.sent[0].event.common_annotations["description"] == text


async def test_a_body_that_never_ends_is_503_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BODY_SECONDS", 0.1)
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        head = f"POST /alerts HTTP/1.1\nHost: relay\nAuthorization: Bearer {TOKEN}\nContent-Length: 10\n\n{{"
        assert await first_line(client, head) == "HTTP/1.1 503 Service Unavailable"


async def test_too_much_at_once_is_503_and_what_was_in_hand_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "IN_HAND_LIMIT", 100)
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        assert (await post(client, payload(1)))[0] == 503
        monkeypatch.setattr(endpoint, "IN_HAND_LIMIT", len(payload(1)))
        assert (await post(client, payload(1)))[0] == 202
        assert (await post(client, payload(4)))[0] == 202


async def test_whoever_waits_too_long_for_a_turn_is_503_and_the_turns_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TURNS", 2)
    monkeypatch.setattr(endpoint, "TURN_SECONDS", 0.1)
    async with served(settings(tmp_path, {"a": Scripted()})) as client:
        with locked(tmp_path / "relay.db"):
            sent = [asyncio.create_task(post(client, webhook_of(group=str(number)))) for number in range(5)]
            await until(lambda: sum(task.done() for task in sent) == 3)
            ended = [task.result() for task in sent if task.done()]
        assert [code for code, _ in ended] == [503] * 3
        assert all("2 others come first" in answer["error"] for _, answer in ended)
        assert sorted(code for code, _ in await asyncio.gather(*sent)) == [202, 202, 503, 503, 503]
        assert [(await post(client, webhook_of(group=str(number))))[0] for number in range(5, 9)] == [202] * 4


async def test_a_locked_store_is_503_and_accepts_again_by_itself(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:
        with locked(tmp_path / "relay.db"):
            code, answer = await post(client, payload(1))
            assert code == 503
            assert "locked" in answer["error"]
            async with client.get("/-/ready") as ready:
                assert ready.status == 503
            async with client.get("/-/healthy") as healthy:
                assert healthy.status == 200
        assert (await post(client, payload(1)))[0] == 202
        await until(lambda: len(channel.sent) == 1)
        async with client.get("/-/ready") as ready:
            assert ready.status == 200


async def test_a_defect_of_ours_is_500_and_counted(tmp_path: Path) -> None:
    def broken(_channels: Iterable[str]) -> None:
        raise ZeroDivisionError

    registry = CollectorRegistry()
    rules = endpoint.Rules((), ("one",), {"one"}, 60.0)
    async with opened(location.sqlite(tmp_path / "relay.db"), lambda: 0.0) as store:
        metrics = Metrics(registry, (), (), ())
        intake = endpoint.Intake(store, rules, metrics, broken, lambda _names: None)
        app = Starlette(routes=[Route("/alerts", intake.post, methods=["POST"])])
        client = TestClient(app, raise_server_exceptions=False)
        assert (await asyncio.to_thread(client.post, "/alerts", content=payload(1))).status_code == 500
    assert registry.get_sample_value("relay_webhooks_total", {"code": "500"}) == 1


async def test_a_relay_that_has_stopped_answers_503(tmp_path: Path) -> None:
    async with running(settings(tmp_path, {"one": Scripted()}), sending=here) as app:
        pass
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    assert (await asyncio.to_thread(client.post, "/alerts", content=payload(1))).status_code == 503


async def test_sources_with_equal_group_keys_are_incidents_of_their_own(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:
        for source in ("eu", "us"):
            assert (await post(client, payload(1), f"/alerts?source={source}"))[0] == 202
        assert (await post(client, payload(1), "/alerts?source=eu"))[0] == 200
        await until(lambda: len(channel.sent) == 2)
    assert len({message.incident_id for message in channel.sent}) == 2


async def test_twins_that_arrive_together_are_told_once(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:
        answers = await asyncio.gather(*(post(client, payload(1)) for _ in range(8)))
        await until(lambda: len(channel.sent) == 1)
    assert sorted(code for code, _ in answers) == [200] * 7 + [202]
    assert len({answer["event_id"] for _, answer in answers}) == 1
