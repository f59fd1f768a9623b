"""`POST /alerts` over real HTTP: who may, how much, and what happens while the store cannot commit."""

import asyncio
import http.client
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import aiohttp
import httpx2
import pytest
import structlog
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from services.relay import text
from services.relay.app import run_relay
from services.relay.delivery.attempt import open_local_sender
from services.relay.intake import endpoint
from services.relay.intake.acceptance import Acceptance
from services.relay.metrics import Metrics
from services.relay.outbox import quarantine
from services.relay.outbox.retention import ByteLimit
from services.relay.outbox.store import open_store
from shared.http import limits as body_limits
from shared.sql import database_url
from tests.relay.served_relay import (
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


async def quarantined(folder: Path) -> list[tuple[quarantine.QuarantineEntry, bytes | None]]:
    """What is kept, the newest first, each with its body."""
    async with open_store(database_url.create_sqlite_url(folder / "relay.db"), lambda: 0.0) as store:
        return [(entry, await quarantine.read_body(store, entry.id)) for entry in await quarantine.list_entries(store)]


def in_process(app: ASGIApp) -> httpx2.AsyncClient:
    """A client on the relay's own event loop: on another one, the store's answer would wait for a timer there."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://relay", headers=headers)


HEAD = f"POST /alerts HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\n"


async def connect(client: aiohttp.ClientSession) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    base = client._base_url
    assert base is not None
    return await asyncio.open_connection(base.host, base.port)


async def first_line(client: aiohttp.ClientSession, head: str) -> str:
    """The status line of the answer to a request of which only this head is ever sent."""
    reader, writer = await connect(client)
    writer.write(head.encode())
    try:
        async with asyncio.timeout(60):
            return (await reader.readline()).decode().strip()
    finally:
        writer.close()


@pytest.mark.parametrize("authorization", ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic !\r\n"])
async def test_no_or_a_wrong_token_is_401_and_the_body_is_never_waited_for(tmp_path: Path, authorization: str) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        head = f"POST /alerts HTTP/1.1\r\nHost: relay\r\n{authorization}Content-Length: 1000000\r\n\r\n"
        assert await first_line(client, head) == "HTTP/1.1 401 Unauthorized"
        await reaches(client, 1, "relay_webhooks_total", code="401")


async def test_another_address_is_403_before_its_token_is_checked(tmp_path: Path) -> None:
    configuration = settings(tmp_path, {"one": Scripted()}, auth={"allow_from": ["10.0.0.0/8", "::ffff:0:0/96"]})
    (tmp_path / "token").unlink()
    async with served(configuration) as client:
        assert (await post(client, payload(1)))[0] == 403
        head = "POST /alerts HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n"
        assert await first_line(client, head) == "HTTP/1.1 403 Forbidden"
        await reaches(client, 2, "relay_webhooks_total", code="403")


async def test_an_address_of_an_allowed_network_may_send(tmp_path: Path) -> None:
    configuration = settings(tmp_path, {"one": Scripted()}, auth={"allow_from": ["10.0.0.0/8", "127.0.0.0/8"]})
    async with served(configuration) as client:
        assert (await post(client, payload(1)))[0] == 202


async def test_a_token_for_other_endpoints_is_told_where_its_own_is_set(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("a-token-of-an-administrator\n")
    auth = {"admin_token_file": tmp_path / "admin"}
    async with served(settings(tmp_path, {"one": Scripted()}, auth=auth)) as client:
        async with client.get("/api/incidents") as answer:
            assert (answer.status, "needs a token of auth.admin_token_file or auth.tokens" in await answer.text()) == (
                401,
                True,
            )
        client.headers["Authorization"] = "Bearer a-token-of-an-administrator"
        status, document = await post(client, payload(1))
    assert (status, document["error"]) == (
        401,
        "this needs a token of auth.bearer_token_file: Authorization: Bearer TOKEN",
    )


async def test_a_token_file_that_goes_missing_is_503_and_not_ready_and_one_line_in_the_log(tmp_path: Path) -> None:
    async def ready() -> tuple[int, str]:
        async with client.get("/-/ready") as answer:
            return answer.status, await answer.text()

    with structlog.testing.capture_logs() as logs:
        async with served(settings(tmp_path, {"one": Scripted()})) as client:
            (tmp_path / "token").rename(tmp_path / "gone")
            for _ in range(5):
                assert (await post(client, payload(1)))[0] == 503
                code, reason = await ready()
                assert code == 503
                assert "auth.bearer_token_file cannot be used" in reason
                assert ": No such file or directory" in reason
                assert str(tmp_path) not in reason
            (tmp_path / "gone").rename(tmp_path / "token")
            assert (await post(client, payload(1)))[0] == 202
            assert (await ready())[0] == 200
    assert [line["event"] for line in logs if "token file" in line["event"]] == [
        "token file is unreadable; requests get 503",
        "token file is readable again",
    ]


async def test_what_is_no_webhook_is_400_with_the_reason_and_its_body_is_kept(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        code, answer = await post(client, b'{"version": "4", "receiver": 7}', "/alerts?source=eu")
        assert code == 400
        assert answer["error"] == "receiver: expected text, not a whole number"
        assert await metric(client, "relay_webhooks_total", code="400") == 1
    ((entry, body),) = await quarantined(tmp_path)
    assert (entry.source, entry.code, body) == ("eu", 400, b'{"version": "4", "receiver": 7}')
    assert entry.reason == answer["error"]


async def test_a_body_over_the_limit_is_413_and_its_beginning_is_kept(tmp_path: Path) -> None:
    # In process: a client over a socket may see the connection reset before it has sent all and reads the answer.
    configuration = settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})
    async with run_relay(configuration, open_sender=open_local_sender) as app, in_process(app) as client:
        body = b"x" * (1024 * 1024 + 1)
        response = await client.post("/alerts", content=body)
        assert response.status_code == 413
        assert response.json() == {"error": "the body is over 1048576 bytes, see intake.max_body"}
        assert response.headers["Connection"] == "close"
        assert (await client.post("/alerts", content=body[1:])).status_code == 400
    (largest, _), (over, beginning) = await quarantined(tmp_path)
    assert (over.code, largest.code) == (413, 400)
    assert over.body_bytes == largest.body_bytes == quarantine.MAX_BODY_BYTES
    assert beginning == body[: quarantine.MAX_BODY_BYTES]


async def test_a_large_webhook_is_kept_whole_and_reported_as_far_as_anybody_reads(tmp_path: Path) -> None:
    channel = Scripted()
    body = webhook_of(commonAnnotations={"description": "ü" * 2_000_000, "summary": "short"})
    async with served(settings(tmp_path, {"one": channel})) as client:
        assert (await post(client, body))[0] == 202
        await until(lambda: len(channel.sent) == 1)
    assert channel.sent[0].event.common_annotations == {"description": "ü" * 16_383 + "…", "summary": "short"}
    with sqlite3.connect(tmp_path / "relay.db") as database:
        assert database.execute("SELECT body FROM events").fetchall() == [(body,)]
    database.close()


async def test_an_upload_over_the_limit_ends_before_it_is_whole(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client:
        for length in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
            _, writer = await connect(client)
            writer.write(f"{HEAD}{length}\r\n\r\n".encode())
            sent = 0
            with suppress(ConnectionError):
                while sent < 50_000_000:
                    writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                    await writer.drain()
                    sent += 65_536
            assert sent < 50_000_000
            writer.close()
        await reaches(client, 2, "relay_webhooks_total", code="413")


async def test_large_webhooks_come_one_after_the_other_and_small_ones_pass_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "BUDGET_WAIT_SECONDS", 0.1)
    large = webhook_of(group="large", commonAnnotations={"description": "x" * 600_000})
    async with served(settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client:
        _, writer = await connect(client)
        writer.write(f"{HEAD}Content-Length: {len(large)}\r\n\r\n".encode() + large[:-1])
        await writer.drain()

        async def refused() -> bool:
            return await post(client, large) == (
                503,
                {"error": "not accepted, send it again: other webhooks come first"},
            )

        await until(refused)
        assert (await post(client, payload(1)))[0] == 202
        writer.write(large[-1:])
        await reaches(client, 2, "relay_webhooks_total", code="202")
        assert (await post(client, large))[0] == 200
        writer.close()


@asynccontextmanager
async def stalled(client: aiohttp.ClientSession, *sent: str) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Webhooks of which no more comes than this: headers of the body, an empty line and what is there of it."""
    opened = [await connect(client) for _ in sent]
    for (_, writer), rest in zip(opened, sent, strict=True):
        writer.write((HEAD + rest).encode())
        await writer.drain()
    await asyncio.sleep(0.1)  # and is taken in hand
    yield [reader for reader, _ in opened]
    for _, writer in opened:
        writer.close()


async def test_a_body_that_hardly_starts_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "BUDGET_WAIT_SECONDS", 0.5)
    large = webhook_of(group="large", commonAnnotations={"description": "x" * 600_000})
    chunks = "Transfer-Encoding: chunked\r\n\r\n"
    async with (
        served(settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client,
        stalled(client, "Content-Length: 1048576\r\n\r\n{", chunks, chunks + "1\r\n{\r\n"),
    ):
        assert (await post(client, large))[0] == 202

        async def small() -> AsyncIterator[bytes]:
            yield payload(1)

        async with client.post("/alerts", data=small()) as answer:
            assert answer.status == 202


@pytest.mark.parametrize("there", [100_000, 1])
async def test_a_body_that_stops_in_the_middle_loses_its_space_to_one_that_waits(
    there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "SLOW_BODY_SECONDS", 0.5)
    monkeypatch.setattr(endpoint, "SMALL_BODIES_LIMIT", 2 * body_limits.SMALL_BODY_BYTES)
    large = webhook_of(group="large", commonAnnotations={"description": "x" * 600_000})
    size = 1_000_000 if there > 1 else body_limits.SMALL_BODY_BYTES
    part = f"Content-Length: {size}\r\n\r\n" + "{" * there
    async with (
        served(settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client,
        stalled(client, part, *[part] * (there == 1)) as readers,
    ):
        assert (await post(client, large if there > 1 else payload(1)))[0] == 202
        assert await readers[0].readline() == b"HTTP/1.1 503 Service Unavailable\r\n"


async def test_one_that_finds_no_space_is_read_to_its_end_and_then_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "BUDGET_WAIT_SECONDS", 0.1)
    async with (
        served(settings(tmp_path, {"one": Scripted()})) as client,
        stalled(client, "Content-Length: 16000000\r\n\r\n" + "{" * 100_000),
    ):
        base = client._base_url
        assert base is not None

        def send() -> int:  # all of it before it reads, as simple clients do
            with closing(http.client.HTTPConnection(str(base.host), base.port or 0, timeout=20)) as connection:
                connection.request("POST", "/alerts", b"x" * 12_000_000, {"Authorization": f"Bearer {TOKEN}"})
                return connection.getresponse().status

        assert await asyncio.to_thread(send) == 503


async def test_a_group_of_thousands_is_reported_with_all_of_them_counted(tmp_path: Path) -> None:
    channel = Scripted()
    (alert,) = json.loads(payload(1))["alerts"]
    alerts = [
        alert | {"labels": {"severity": "critical" if number == 8_999 else "info"}, "fingerprint": f"{number:016x}"}
        for number in range(9_000)
    ]
    over = [each | {"status": "resolved", "fingerprint": f"r{number}"} for number, each in enumerate(alerts[:1_000])]
    async with served(settings(tmp_path, {"one": channel})) as client:
        assert (await post(client, webhook_of(alerts=over + alerts)))[0] == 202
        assert (await post(client, webhook_of(alerts=alerts[::-1] + over[::-1])))[0] == 200
        await until(lambda: len(channel.sent) == 1)
        event = channel.sent[0].event
        assert text.format_counts(event) == "9000 firing, 1000 resolved"
        assert 500 < len(event.alerts) < 5_000
        assert event.alerts[0].fingerprint == f"{8_999:016x}"  # the only one that is critical


async def test_where_a_field_contains_more_names_than_any_alert_has_it_is_413_and_kept(tmp_path: Path) -> None:
    labels = {f"name {number}": "" for number in range(30_000)}
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        answer = await post(client, webhook_of(groupLabels=labels))
        assert answer == (413, {"error": "groupLabels: over 20000 names and values"})
    ((entry, _),) = await quarantined(tmp_path)
    assert entry.code == 413


async def test_a_body_that_never_ends_is_503_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 0.1)
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        assert await first_line(client, f"{HEAD}Content-Length: 10\r\n\r\n{{") == "HTTP/1.1 503 Service Unavailable"


async def test_too_much_at_once_is_503_and_what_was_in_progress_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "SMALL_BODIES_LIMIT", len(payload(1)))
    monkeypatch.setattr(body_limits, "BUDGET_WAIT_SECONDS", 0.1)
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        _, writer = await connect(client)
        writer.write(f"{HEAD}Content-Length: {len(payload(1))}\r\n\r\n{{".encode())
        await writer.drain()

        async def refused() -> bool:
            return (await post(client, payload(4)))[0] == 503

        await until(refused)
        writer.close()
        assert (await post(client, payload(1)))[0] == 202
        assert (await post(client, payload(4)))[0] == 202


@pytest.mark.usefixtures("short_lock_wait")
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
    own = settings(tmp_path, {"one": Scripted()})
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
        metrics = Metrics(registry)
        acceptance = Acceptance(store, own, metrics, broken, ByteLimit())
        intake = endpoint.Intake(acceptance, metrics, lambda _names: None)
        app = Starlette(routes=[Route("/alerts", intake.handle_post, methods=["POST"])])
        client = TestClient(app, raise_server_exceptions=False)
        assert (await asyncio.to_thread(client.post, "/alerts", content=payload(1))).status_code == 500
    assert registry.get_sample_value("relay_webhooks_total", {"code": "500"}) == 1


async def test_a_relay_that_has_stopped_answers_503(tmp_path: Path) -> None:
    async with run_relay(settings(tmp_path, {"one": Scripted()}), open_sender=open_local_sender) as app:
        pass
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    assert (await asyncio.to_thread(client.post, "/alerts", content=payload(1))).status_code == 503


async def test_a_relay_that_is_stopping_answers_503_though_its_outbox_still_commits(tmp_path: Path) -> None:
    channel = Scripted()
    given = settings(tmp_path, {"one": channel})
    async with run_relay(given, open_sender=open_local_sender) as app, in_process(app) as client:
        assert (await client.post("/alerts", content=payload(1))).status_code == 202
        app.state.stop()
        refused = await client.post("/alerts", content=payload(3))
        await until(lambda: len(channel.sent) == 1)
    assert (refused.status_code, refused.json()) == (
        503,
        {"error": "not accepted, send it again: the relay is stopping"},
    )
    assert len(channel.sent) == 1
