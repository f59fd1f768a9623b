"""A reload: what is read, what is refused, who may ask for it, and what it says."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from shared.config.errors import ConfigurationError
from shared.config.server_settings import AuthSettings
from shared.config.settings import parse_address
from shared.http.access import Authorizer
from shared.http.server import StartError
from shared.process.server import ReloadMiddleware
from tests.conftest import Until
from tests.shared.sample import SETTINGS, Settings

APP = Starlette(routes=[Route("/own", lambda _request: PlainTextResponse("own"))])


class Rig:
    """A server whose file is `on_disk`; `applied` is what it was told to run."""

    def __init__(
        self, settings: Settings = SETTINGS, apply: Callable[[Settings], Awaitable[None]] | None = None
    ) -> None:
        self.on_disk: Settings | Exception = settings
        self.applied: list[Settings] = []
        self.metrics = CollectorRegistry()
        self.guard = Authorizer(self.metrics)
        self.now = 100.0
        self.reloading = ReloadMiddleware(
            APP, settings, self._load, apply or self._apply, ("listen",), self.guard, lambda: self.now
        )

    def change(self, **keys: object) -> None:
        self.on_disk = self.reloading.settings.model_copy(update=keys)

    def gauges(self) -> tuple[float | None, float | None]:
        name = "keypulse_config_last_reload_"
        return tuple(self.metrics.get_sample_value(name + each) for each in ("successful", "success_timestamp_seconds"))  # type: ignore[return-value]  # two of two

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.reloading), base_url="http://127.0.0.1:9000")

    def _load(self) -> Settings:
        if isinstance(self.on_disk, Exception):
            raise self.on_disk
        return self.on_disk

    async def _apply(self, settings: Settings) -> None:
        self.applied.append(settings)


async def test_the_start_counts_as_a_reload_and_a_reload_applies_what_is_read() -> None:
    rig = Rig()
    assert rig.gauges() == (1, 100)
    rig.now = 200
    rig.change(text="two")
    async with rig.client() as client:
        answer = await client.post("/-/reload")
        assert (answer.status_code, answer.text) == (200, "reloaded\n")
        assert (await client.get("/own")).text == "own"
    assert [settings.text for settings in rig.applied] == ["two"]
    assert rig.reloading.settings.text == "two"
    assert rig.gauges() == (1, 200)


async def test_a_bad_file_changes_nothing_and_each_error_is_reported_in_answer_log_and_gauge() -> None:
    rig = Rig()
    rig.now, rig.on_disk = 200, ConfigurationError(["f: a: wrong", "f: b: wrong"])
    with capture_logs() as logs:
        async with rig.client() as client:
            answer = await client.post("/-/reload")
    assert (answer.status_code, answer.text) == (500, "f: a: wrong\nf: b: wrong\n")
    assert [entry["error"] for entry in logs if "error" in entry] == ["f: a: wrong", "f: b: wrong"]
    assert (logs[-1]["event"], logs[-1]["who"], logs[-1]["status"]) == ("action", "anonymous", 500)
    assert not rig.applied
    assert rig.gauges() == (0, 100)
    rig.on_disk, rig.now = SETTINGS, 300
    assert await rig.reloading.reload() == []
    assert rig.gauges() == (1, 300)


@pytest.mark.parametrize(
    ("error", "sentences"),
    [
        (ConfigurationError(["no"]), ["no"]),
        (StartError("cannot start: no"), ["cannot start: no"]),
        (ZeroDivisionError(), ["a defect of this server; its trace is in the log"]),
    ],
)
async def test_what_cannot_be_applied_does_not_count_as_what_runs(error: Exception, sentences: list[str]) -> None:
    async def apply(_settings: Settings) -> None:
        raise error

    rig = Rig(apply=apply)
    rig.change(text="two", auth=AuthSettings(admin_token_file=Path("/token")))
    assert await rig.reloading.reload() == sentences
    assert (rig.reloading.settings, rig.reloading.access_policy.tokens) == (SETTINGS, [])
    assert rig.gauges() == (0, 100)


async def test_a_key_that_needs_a_restart_refuses_the_whole_and_names_it() -> None:
    rig = Rig()
    rig.change(listen=parse_address("127.0.0.1:1"), text="two")
    assert await rig.reloading.reload() == ["listen: changes only with a restart; restart, or set it back"]
    assert not rig.applied


async def test_where_nothing_can_be_applied_every_changed_key_needs_a_restart() -> None:
    on_disk = SETTINGS
    reloading = ReloadMiddleware(APP, SETTINGS, lambda: on_disk, None, (), Authorizer(CollectorRegistry()))
    assert await reloading.reload() == []
    on_disk = SETTINGS.model_copy(update={"text": "two", "count": 2})
    assert [line.partition(":")[0] for line in await reloading.reload()] == ["count", "text"]


async def test_two_at_once_come_one_after_the_other() -> None:
    events: list[str] = []

    async def apply(settings: Settings) -> None:
        events.append(f"begin {settings.text}")
        await asyncio.sleep(0.01)
        events.append(f"end {settings.text}")

    rig = Rig(apply=apply)
    rig.change(text="two")
    await asyncio.gather(*(rig.reloading.reload() for _ in range(3)))
    assert events == ["begin two", "end two"] * 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_only_a_post_reloads(method: str) -> None:
    rig = Rig()
    async with rig.client() as client:
        answer = await client.request(method, "/-/reload")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert not rig.applied


async def test_another_web_page_may_not_ask_nor_one_that_points_its_name_to_this_server() -> None:
    rig = Rig()
    async with rig.client() as client:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"host": "evil.example"}):
            assert (await client.post("/-/reload", headers=headers)).status_code == 403
    assert not rig.applied


async def test_it_needs_the_admin_token_of_what_runs(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("an-old-admin-token")
    (tmp_path / "new").write_text("a-new-admin-token")
    rig = Rig(SETTINGS.model_copy(update={"auth": AuthSettings(admin_token_file=tmp_path / "old")}))
    rig.change(auth=AuthSettings(admin_token_file=tmp_path / "new"))
    async with rig.client() as client:
        for headers in ({}, {"authorization": "Bearer a-new-admin-token"}):
            assert (await client.post("/-/reload", headers=headers)).status_code == 401
        assert (
            await client.post("/-/reload", headers={"authorization": "Bearer an-old-admin-token"})
        ).status_code == 200
        assert (
            await client.post("/-/reload", headers={"authorization": "Bearer an-old-admin-token"})
        ).status_code == 401
        assert (
            await client.post("/-/reload", headers={"authorization": "Bearer a-new-admin-token"})
        ).status_code == 200
        (tmp_path / "new").unlink()
        assert (
            await client.post("/-/reload", headers={"authorization": "Bearer a-new-admin-token"})
        ).status_code == 503
    assert len(rig.applied) == 2


async def test_the_audit_says_which_reload_was_refused(until: Until) -> None:
    rig = Rig()

    async def list_reloads() -> list[tuple[str, str, str]]:
        return [(each.who, each.action, each.on) for each in (await rig.guard.audit_log.list_entries(9, None))[0]]

    async def hang_up() -> None:
        count = len(await list_reloads())
        os.kill(os.getpid(), signal.SIGHUP)

        async def is_recorded() -> bool:
            return len(await list_reloads()) > count

        await until(is_recorded)

    async with rig.reloading.reload_on_sighup(), rig.client() as client:
        await hang_up()
        await client.post("/-/reload")
        rig.on_disk = ConfigurationError(["f: a: wrong"])
        await hang_up()
        await client.post("/-/reload")
    assert await list_reloads() == [
        ("anonymous", "reload", "refused"),
        ("SIGHUP", "reload", "refused"),
        ("anonymous", "reload", ""),
        ("SIGHUP", "reload", ""),
    ]


async def test_a_hangup_reloads_and_the_end_waits_for_a_reload_that_was_cancelled() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def apply(_settings: Settings) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # such as workers that are stopped
            ended.set()

    rig = Rig(apply=apply)
    async with asyncio.timeout(10):
        async with rig.reloading.reload_on_sighup():
            os.kill(os.getpid(), signal.SIGHUP)
            await begun.wait()
        assert ended.is_set()
        begun.clear()
        ended.clear()
        async with rig.reloading.reload_on_sighup():
            request = asyncio.create_task(rig.reloading.reload())
            await begun.wait()
            request.cancel()
        assert ended.is_set()
