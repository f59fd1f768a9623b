"""The fault behind an incident is read from the exporter, in bounded time, and what it does not tell is said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from services.relay.apis import ExporterHistory, HistoryQuery
from shared.check import CheckError
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.config.settings import Address
from shared.http.authentication import AccessPolicy, Token
from shared.http.server import create_application, create_registry, serve
from shared.kms.reason import Reason

KEY = HistoryQuery("target", "ledger-kek")


@asynccontextmanager
async def exporting(token: Path) -> AsyncIterator[str]:
    """An exporter that saw a key fail twice, and asks for a viewer's token."""
    history = History(clock=lambda: 500.0)
    history.configure({("ledger", "ledger-kek"): TargetKey()}, [])
    for at in (1000.0, 1030.0):
        call = Call(Operation.ENCRYPT, 0.01, Failure(Reason.KEY_DISABLED, "version 2 is disabled"))
        history.add_probe(ProbeResult("ledger", "ledger-kek", at, (call,), None))
    await asyncio.to_thread(token.write_text, "a-token-of-a-viewer")
    policy = AccessPolicy([Token("relay", Role.VIEWER, TokenFile(token))])
    routes = BoardPages(history, result_max_age=1).build_routes()
    app = create_application("keypulse exporter", create_registry(), routes, access_policy=policy)
    async with serve(app, Address("127.0.0.1", 0)) as address:
        yield f"http://{address}"


async def test_the_failures_of_a_key_are_read_with_a_token_and_kept_for_a_moment(tmp_path: Path) -> None:
    now = 0.0
    async with exporting(tmp_path / "token") as url:
        reader = ExporterHistory(url, tmp_path / "token", monotonic=lambda: now)
        assert reader.get_answer(KEY) is None
        one, same = await asyncio.gather(reader.read(KEY), reader.read(KEY))
        assert one is same
        (failure,) = one.failures
        assert (failure.first_at, failure.last_at, failure.count, failure.is_current) == (1000.0, 1030.0, 2, True)
        assert (failure.reason, failure.detail, one.recorded_since) == ("key_disabled", "version 2 is disabled", 500.0)
        assert await reader.read(KEY) is one
        now += 60
        assert not reader.is_current(KEY)
        assert reader.get_answer(KEY) is one, "until there is another one"
        assert await reader.read(KEY) is not one
        assert (await reader.read(HistoryQuery("target", "x"))).error == "it does not watch this key (HTTP 404)"
        assert await reader.check() == "it knows 1 failures of keys"
        anonymous = ExporterHistory(url)
        assert (await anonymous.read(KEY)).error == "it answered HTTP 401"
        with pytest.raises(CheckError, match="it answered HTTP 401"):
            await anonymous.check()
        await anonymous.close()
        await reader.close()


async def test_an_exporter_that_hangs_or_answers_anything_costs_no_more_than_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        kind = request.query["service"]
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "wordy":
            times = {"first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:00:00Z"}
            failure = {"target": "t", "operation": "encrypt", "reason": "timeout", "detail": "x" * 5000, **times}
            return web.json_response({"since": "2026-01-01T00:00:00Z", "failures": [failure]})
        if kind == "moved":
            raise web.HTTPFound("http://127.0.0.1:1/")
        return web.Response(body=b" " * (2 * 1024 * 1024) if kind == "large" else b'{"status": "success"}')

    app = web.Application()
    app.router.add_get("/api/history", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader = ExporterHistory(f"http://127.0.0.1:{runner.addresses[0][1]}")
    errors = {
        "moved": "the exporter answered HTTP 302, a redirect",
        "large": "its answer is over 1048576 bytes",
        "other": "its answer is not that of keypulse's exporter",
    }
    for kind, error in errors.items():
        found = await reader.read(HistoryQuery("service", kind))
        assert (found.error, list(found.failures)) == (error, [])
    with monkeypatch.context() as patch:
        patch.setattr(ExporterHistory, "timeout", 0.1)
        hangs = await reader.read(HistoryQuery("service", "hang"))
    assert (hangs.error, list(hangs.failures)) == ("no answer within 0.1 s", [])
    (failure,) = (await reader.read(HistoryQuery("service", "wordy"))).failures
    assert failure.detail == "x" * 500
    await reader.close()
    await runner.cleanup()
    absent = ExporterHistory("http://127.0.0.1:1")
    assert "no connection" in ((await absent.read(KEY)).error or "")
    await absent.close()
