"""What Alertmanager's API says is read within bounds; whatever else comes back is one sentence."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from services.relay.apis import ActiveAlert, AlertmanagerClient, AlertmanagerState, ApiError
from tests.sites import serve_site

SINCE = 1_700_000_000.0
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def status(request: web.Request) -> web.StreamResponse:
    uptime = datetime.fromtimestamp(SINCE, UTC).isoformat().replace("+00:00", ".000Z")
    return web.json_response({"uptime": uptime, "versionInfo": {}, "cluster": {"status": "disabled"}})


def alert(fingerprint: str, state: str) -> dict[str, object]:
    """Without much that the real one says besides."""
    return {
        "fingerprint": fingerprint,
        "labels": {"alertname": "A"},
        "startsAt": "2023-11-14T22:13:20.000Z",
        "receivers": [{"name": "kms-critical"}, {"name": "direct"}],
        "status": {"state": state, "silencedBy": [], "inhibitedBy": []},
    }


async def alerts(request: web.Request) -> web.StreamResponse:
    every = {"active": "true", "silenced": "true", "inhibited": "true", "unprocessed": "true"}
    assert dict(request.query) == every
    return web.json_response([alert("a1", "active"), alert("b2", "suppressed"), alert("c3", "unprocessed")])


class Api:
    """The edge of an Alertmanager, whose answers a test may replace."""

    def __init__(self) -> None:
        self.url = ""
        self.status: Answer = status
        self.alerts: Answer = alerts
        self.credentials: list[str | None] = []

    async def give_status(self, request: web.Request) -> web.StreamResponse:
        self.credentials.append(request.headers.get("Authorization"))
        return await self.status(request)

    async def give_alerts(self, request: web.Request) -> web.StreamResponse:
        self.credentials.append(request.headers.get("Authorization"))
        return await self.alerts(request)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    async with serve_site(
        web.get("/prefix/api/v2/status", api.give_status), web.get("/prefix/api/v2/alerts", api.give_alerts)
    ) as url:
        api.url = f"{url}/prefix"
        yield api


@pytest.fixture
async def peer(api: Api) -> AsyncIterator[AlertmanagerClient]:
    peer = AlertmanagerClient(api.url, None)
    yield peer
    await peer.close()


async def test_it_says_since_when_it_is_up_and_what_it_knows(peer: AlertmanagerClient, api: Api) -> None:
    active = ActiveAlert(datetime.fromtimestamp(SINCE, UTC), frozenset({"kms-critical", "direct"}))
    assert await peer.read_state() == AlertmanagerState(
        SINCE, {key: {"alertname": "A"} for key in ("a1", "b2", "c3")}, {"a1": active}
    )
    assert api.credentials == [None, None]


async def test_the_token_is_sent_and_read_again_when_its_file_changes(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    peer = AlertmanagerClient(api.url, file)
    await peer.read_state()
    file.write_text("the-second\n")
    await peer.read_state()
    file.unlink()
    with pytest.raises(ApiError, match="No such file"):
        await peer.read_state()
    await peer.close()
    assert api.credentials == ["Bearer first"] * 2 + ["Bearer the-second"] * 2


async def refuses(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401)


async def redirects(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/prefix/api/v2/status"})


async def is_a_page(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>")


async def is_another_json(request: web.Request) -> web.StreamResponse:
    return web.json_response([{"labels": {}}])


async def is_before_all_time(request: web.Request) -> web.StreamResponse:
    return web.json_response([{**alert("a1", "active"), "startsAt": "0001-01-01T00:00:00+09:00"}])


async def is_too_long(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"[" + b" " * AlertmanagerClient.max_bytes)


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"[")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refuses, "HTTP 401"),
        (redirects, "redirect"),
        (is_a_page, "not that of Alertmanager's API"),
        (is_another_json, "not that of Alertmanager's API"),
        (is_before_all_time, "not that of Alertmanager's API"),
        (is_too_long, "over 16777216 bytes"),
        (breaks_off, "Alertmanager"),
    ],
)
@pytest.mark.parametrize("where", ["status", "alerts"])
async def test_an_answer_that_cannot_be_used_is_one_sentence(
    where: str, answer: Answer, sentence: str, peer: AlertmanagerClient, api: Api
) -> None:
    setattr(api, where, answer)
    with pytest.raises(ApiError, match=sentence):
        await peer.read_state()


@pytest.mark.parametrize("compressed", [True, False])
async def test_an_answer_takes_no_more_memory_than_a_few_times_what_is_read_of_it(
    api: Api, peer: AlertmanagerClient, compressed: bool
) -> None:
    content = b"[" + b"[]," * 2_000_000 + b"[]]"

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(content, 1) if compressed else content
        return web.Response(body=body, headers={"Content-Encoding": "gzip"} if compressed else {})

    api.alerts = answer
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="not that of Alertmanager's API"):
            await peer.read_state()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(content)


async def test_one_that_is_not_there_is_one_sentence() -> None:
    peer = AlertmanagerClient("http://127.0.0.1:1", None)
    with pytest.raises(ApiError, match=r"no connection: Connection refused$"):
        await peer.read_state()
    await peer.close()


async def test_one_that_hangs_is_waited_for_ten_seconds_at_most(
    peer: AlertmanagerClient, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert AlertmanagerClient.timeout == 10
    monkeypatch.setattr(AlertmanagerClient, "timeout", 0.05)

    async def trickles(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    api.alerts = trickles
    with pytest.raises(ApiError, match="no answer within"):
        await peer.read_state()
