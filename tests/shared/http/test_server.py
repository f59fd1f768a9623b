"""What every server has, over real sockets; how it stops is tried in `test_command_line.py`, on real processes."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client import Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared import VERSION
from shared.config.settings import Address
from shared.http import server
from shared.http.server import StartError, bind_socket, create_application, create_registry, serve

ANY_PORT = Address("127.0.0.1", 0)


async def _own(_request: Request) -> Response:
    return PlainTextResponse("own")


OWN = [Route("/own", _own), Route("/own/{id}", _own), Route("/sent", _own, methods=["POST"])]


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    metrics = create_registry()
    Counter("things_total", "Things.", ["name"], registry=metrics).labels('a"b').inc()
    async with (
        serve(create_application("<sample>", metrics, OWN), ANY_PORT) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as opened,
    ):
        yield opened


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "text/html", "text/plain;version=x", "application/openmetrics-text;version=x"]
)
async def test_metrics_are_prometheus_text_for_whoever_does_not_request_more(
    accept: str, client: httpx2.AsyncClient
) -> None:
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in prometheus_text(answer.text)}
    assert families["things"].samples[0].labels == {"name": 'a"b'}
    assert families["keypulse_build_info"].samples[0].labels["version"] == VERSION


async def test_metrics_are_open_metrics_for_whoever_requests_them_as_prometheus_does(
    client: httpx2.AsyncClient,
) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.2"
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert "things" in {family.name for family in open_metrics(answer.text)}  # type: ignore[no-untyped-call]  # prometheus_client types it not


async def test_the_landing_page_links_every_page_that_can_be_opened_and_escapes_its_title(
    client: httpx2.AsyncClient,
) -> None:
    page = (await client.get("/")).text
    for path in ("/metrics", "/-/healthy", "/-/ready", "/own"):
        assert f'<a href="{path}">' in page
        assert (await client.get(path)).status_code == 200
    assert "{id}" not in page
    assert "<sample>" not in page
    assert "&lt;sample&gt;" in page


async def test_a_server_that_is_not_ready_says_why_and_is_healthy_all_the_same() -> None:
    reason: str | None = "waiting for something"
    app = create_application("sample", create_registry(), OWN, get_unready_reason=lambda: reason)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://sample") as client:
        not_ready = await client.get("/-/ready")
        assert (not_ready.status_code, not_ready.text) == (503, "waiting for something\n")
        assert (await client.get("/-/healthy")).status_code == 200
        reason = None
        assert (await client.get("/-/ready")).status_code == 200


@pytest.mark.parametrize(
    ("reason", "public"),
    [
        ("/run/secrets/token: No such file or directory", "…: No such file or directory"),
        (
            "others may read it; run: chmod 600 /data/local.key, or `/x/y`",
            "others may read it; run: chmod 600 …, or `…`",
        ),
        ('socket "/var/run/postgresql/.s.PGSQL.5432" failed', 'socket "…" failed'),
        ("ca_file=/etc/ca.pem (/etc/é)", "ca_file=… (…)"),
        (
            "KMS answers 3/4; see https://example.org/a/b and n/a",
            "KMS answers 3/4; see https://example.org/a/b and n/a",
        ),
    ],
)
async def test_a_server_that_is_not_ready_names_no_path(reason: str, public: str) -> None:
    app = create_application("sample", create_registry(), OWN, get_unready_reason=lambda: reason)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://sample") as client:
        assert (await client.get("/-/ready")).text == f"{public}\n"


async def test_a_taken_port_is_one_sentence_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        with pytest.raises(StartError) as refused:
            async with serve(create_application("sample", create_registry(), OWN), Address("127.0.0.1", port)):
                pytest.fail("it serves")
    assert str(refused.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what listens there, or set another address"
    )


def test_of_two_that_bind_one_port_at_once_one_is_refused() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        with bind_socket(Address("127.0.0.1", other.getsockname()[1])), pytest.raises(OSError, match="in use"):
            other.listen()


@pytest.mark.parametrize("host", ["192.0.2.1", "name.invalid"])
def test_an_address_that_is_not_ours_is_one_sentence(host: str) -> None:
    with pytest.raises(StartError, match=f"cannot listen on {host}:0: .+; stop what listens there, or set another"):
        bind_socket(Address(host, 0))


async def test_a_request_in_progress_is_answered_before_the_stop_and_a_later_one_is_not_taken() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request) -> Response:
        begun.set()
        await go_on.wait()
        return PlainTextResponse("answered")

    async with httpx2.AsyncClient() as client:
        async with serve(create_application("sample", create_registry(), [Route("/slow", slow)]), ANY_PORT) as address:
            request = asyncio.create_task(client.get(f"http://{address}/slow"))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.3, go_on.set)
        assert (await request).text == "answered"
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"http://{address}/slow")


async def test_a_request_that_outlasts_the_stop_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.1)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_request: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return PlainTextResponse("never")

    app = create_application("sample", create_registry(), [Route("/endless", endless)])
    async with asyncio.timeout(15), httpx2.AsyncClient() as client:
        async with serve(app, ANY_PORT) as address:
            request = asyncio.create_task(client.get(f"http://{address}/endless"))
            await begun.wait()
        await cancelled.wait()
        request.cancel()


async def test_a_header_does_not_change_who_calls() -> None:
    async def caller(request: Request) -> Response:
        assert request.client is not None
        return PlainTextResponse(request.client.host)

    async with (
        serve(create_application("sample", create_registry(), [Route("/caller", caller)]), ANY_PORT) as address,
        httpx2.AsyncClient() as client,
    ):
        answer = await client.get(f"http://{address}/caller", headers={"x-forwarded-for": "10.1.2.3"})
    assert answer.text == "127.0.0.1"


async def test_what_an_accepted_connection_sends_is_not_delayed() -> None:
    accepted = asyncio.get_running_loop().create_future()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with bind_socket(ANY_PORT) as bound:
        server = await asyncio.get_running_loop().create_server(Connection, sock=bound)
        async with server:
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.close()
            await writer.wait_closed()
            assert await accepted


async def test_the_two_probes_answer_while_every_scrape_hangs_to_a_head_too() -> None:
    go_on, started = threading.Event(), threading.Semaphore(0)

    def hanging(_request: Request) -> Response:
        started.release()
        go_on.wait(30)
        return PlainTextResponse("")

    app = create_application("sample", create_registry(), OWN, handle_metrics=hanging)
    async with (
        asyncio.timeout(20),
        serve(app, ANY_PORT) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=30) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(45):  # more than there are threads for them
            tasks.create_task(client.get("/metrics"))
        assert await asyncio.to_thread(started.acquire, timeout=10)
        for path, text in (("/-/healthy", "healthy\n"), ("/-/ready", "ready\n")):
            assert (await client.get(path)).text == text
            head = await client.head(path)
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(text)))
        go_on.set()
