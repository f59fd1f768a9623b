"""The runbook stays in memory, is read again when it changes, and nothing else than it is read."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.relay.delivery import enrichment as module
from services.relay.delivery.enrichment import MAX_BYTES, Runbook
from tests.relay.served_relay import until
from tests.sites import serve_site
from tests.stopwatch import Stopwatch


@asynccontextmanager
async def running(location: Path | str) -> AsyncIterator[Runbook]:
    runbook = Runbook(location)
    task = asyncio.create_task(runbook.run())
    try:
        yield runbook
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def text_of(runbook: Runbook, alertname: str = "DiskFull") -> str | None:
    found = await runbook.find(alertname)
    return found.blocks[0].text if found else None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FILE_INTERVAL", "_URL_INTERVAL", "_RETRY_INTERVAL"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(module, "_FIRST_WAIT", 60.0)


async def test_a_file_is_read_again_when_it_or_one_that_it_leads_to_changes(tmp_path: Path) -> None:
    file, linked = tmp_path / "docs/runbook.md", tmp_path / "docs/more/a.md"
    linked.parent.mkdir(parents=True)
    linked.write_text("# DiskFull\n\nLinked.")
    (tmp_path / "secret.md").write_text("# DiskFull\n\nSecret.")
    file.write_text("# DiskFull\n\nSee [a](more/a.md).")
    async with running(file) as runbook:
        assert await text_of(runbook) == "Linked."
        linked.write_text("# DiskFull\n\nChanged.")
        await _until_text(runbook, "Changed.")
        file.write_text("# DiskFull\n\nSee [a](../secret.md).")
        await _until_text(runbook, "See a.")
        file.unlink()
        await asyncio.sleep(0.1)
        assert await text_of(runbook) == "See a."  # what was read stays
        file.write_text("# DiskFull\n\nBack.")
        await _until_text(runbook, "Back.")
        file.write_text("# DiskFull\n\n" + "Large. " * MAX_BYTES)
        await asyncio.sleep(0.1)
        assert await text_of(runbook) == "Back."


async def _until_text(runbook: Runbook, text: str) -> None:
    async def is_there() -> bool:
        return await text_of(runbook) == text

    await until(is_there)


async def test_of_a_folder_a_name_leads_to_its_file_and_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "secret.md").write_text("# DiskFull\n\nSecret.")
    (tmp_path / "docs/DiskFull.md").write_text("# DiskFull\n\nHere.")
    async with running(tmp_path / "docs") as runbook:
        assert await text_of(runbook) == "Here."
        assert await text_of(runbook, "diskfull") == "Here."
        for hostile in ("../secret", "/etc/passwd", "", "DiskFull/x", "*", "a" * 10_000):
            assert await runbook.find(hostile) is None
        (tmp_path / "docs/Other.md").write_text("# Other\n\nNew.")
        await until(lambda: "other" in runbook._excerpts)


async def test_of_a_url_only_what_changed_is_read_and_no_redirect_is_followed() -> None:
    requests: list[str | None] = []
    answers: list[web.StreamResponse] = []
    text = "# DiskFull\n\nServed."

    async def answer(request: web.Request) -> web.Response:
        requests.append(request.headers.get("If-None-Match"))
        if failing:
            return failing[0]
        if request.headers.get("If-None-Match") == '"1"':
            return web.Response(status=304)
        return web.Response(text=text, headers={"ETag": '"1"'})

    async def elsewhere(_request: web.Request) -> web.Response:
        answers.append(web.Response())
        return web.Response(text="# DiskFull\n\nElsewhere.")

    failing: list[web.Response] = []
    routes = web.get("/runbook.md", answer), web.get("/elsewhere.md", elsewhere)
    async with serve_site(*routes) as url, running(f"{url}/runbook.md") as runbook:
        assert await text_of(runbook) == "Served."
        await until(lambda: len(requests) > 2)
        assert requests[:3] == [None, '"1"', '"1"']
        for failure in (
            web.Response(status=302, headers={"Location": "/elsewhere.md"}),
            web.Response(status=500),
            web.Response(text="# DiskFull\n\n" + "x" * MAX_BYTES),
        ):
            failing[:] = [failure]
            count = len(requests)
            await until(lambda count=count: len(requests) > count)  # type: ignore[misc]
            assert await text_of(runbook) == "Served."
    assert answers == []


async def test_a_message_waits_for_a_file_that_hangs_half_a_second_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    os.mkfifo(tmp_path / "runbook.md")
    async with running(tmp_path / "runbook.md") as runbook:
        watch = Stopwatch()
        assert await runbook.find("DiskFull") is None
        assert watch.seconds < 2
        assert runbook._is_ready.is_set()
        os.close(os.open(tmp_path / "runbook.md", os.O_WRONLY | os.O_NONBLOCK))  # its thread ends
