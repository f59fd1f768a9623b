"""A webhook is answered before Alertmanager gives up, whatever it waits for: one deadline from its first byte."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.intake import endpoint
from services.relay.intake import webhook as webhook_parser
from services.relay.intake.webhook import ParsedWebhook
from shared.http.web_config_auth import PASSWORD_CHECK_SECONDS
from tests.relay.intake.test_endpoint import locked
from tests.relay.served_relay import Scripted, post, served, settings, webhook_of
from tests.stopwatch import Stopwatch

SECONDS = 2.0
LATE = 0.9
"""What a busy machine may add: less than one more of the waits below."""
ALERTMANAGER_SECONDS = 10.0
"""Alertmanager's default `http_config` gives up then."""


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "ANSWER_SECONDS", SECONDS)
    monkeypatch.setattr(endpoint, "ADMISSION_SECONDS", 1.5)
    monkeypatch.setattr(endpoint, "MAX_CONCURRENT_WEBHOOKS", 2)


async def post_webhook(client: aiohttp.ClientSession, body: bytes | AsyncIterator[bytes]) -> tuple[float, int, str]:
    """After how many seconds, with which code, and why."""
    watch = Stopwatch()
    async with client.post("/alerts", data=body) as response:
        return watch.seconds, response.status, (await response.json())["error"]


async def dripping(body: bytes) -> AsyncIterator[bytes]:
    """A body that takes far longer than a webhook may take."""
    for byte in body:
        yield bytes([byte])
        await asyncio.sleep(0.1)


def large(group: str = "large") -> bytes:
    return webhook_of(group=group, commonAnnotations={"description": "x" * 600_000})


def test_the_times_leave_alertmanager_a_second_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert endpoint.ADMISSION_SECONDS < PASSWORD_CHECK_SECONDS < endpoint.ANSWER_SECONDS <= ALERTMANAGER_SECONDS - 1.5


async def test_whatever_a_webhook_waits_for_it_is_answered_in_time(tmp_path: Path) -> None:
    """Each by a relay of its own, side by side."""
    waits = (_wait_for_queues_and_store, _wait_for_a_body, _wait_for_a_body_and_the_commit, _wait_for_space)
    async with asyncio.TaskGroup() as relays:
        for wait in waits:
            folder = tmp_path / wait.__name__
            folder.mkdir()
            relays.create_task(wait(folder))


async def _wait_for_queues_and_store(folder: Path) -> None:
    """A locked store and every queue before it take no longer in total."""
    async with served(settings(folder, {"one": Scripted()})) as client:
        with locked(folder / "relay.db"):
            every = await asyncio.gather(*(post_webhook(client, webhook_of(group=str(number))) for number in range(9)))
        assert {code for _, code, _ in every} == {503}
        assert max(seconds for seconds, _, _ in every) < SECONDS + LATE
        waits = {error.partition("it still waited for ")[2] for _, _, error in every}
        assert waits == {"its commit", "2 webhooks before it"}
        assert (await post(client, webhook_of()))[0] == 202


async def _wait_for_a_body(folder: Path) -> None:
    async with served(settings(folder, {"one": Scripted()})) as client:
        seconds, code, error = await post_webhook(client, dripping(webhook_of()))
        assert (code, error) == (503, "not accepted, send it again: after 2 s it still waited for its body")
        assert seconds < SECONDS + LATE


async def _wait_for_a_body_and_the_commit(folder: Path) -> None:
    """A slow body before a locked store shares its time with the commit."""

    async def late() -> AsyncIterator[bytes]:
        body = webhook_of()
        yield body[:1]
        await asyncio.sleep(0.75 * SECONDS)
        yield body[1:]

    async with served(settings(folder, {"one": Scripted()})) as client:
        with locked(folder / "relay.db"):
            seconds, code, error = await post_webhook(client, late())
        assert code == 503
        assert "its commit" in error
        assert seconds < SECONDS + LATE


async def _wait_for_space(folder: Path) -> None:
    async with served(settings(folder, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client:

        async def stalled() -> AsyncIterator[bytes]:
            yield large()[:100_000]
            await asyncio.sleep(60)

        stalled_request = asyncio.create_task(post_webhook(client, stalled()))
        await asyncio.sleep(0.2)  # it has its room by then, or else this test tries less
        seconds, code, error = await post_webhook(client, large("another"))
        assert (code, error) == (503, "not accepted, send it again: other webhooks come first")
        assert seconds < SECONDS + LATE
        assert (await stalled_request)[1] == 503


async def test_one_that_is_parsed_for_too_long_is_answered_and_keeps_its_space_until_the_parser_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = webhook_parser.parse_webhook
    go_on = threading.Event()

    def parse_slowly(*given: Any) -> ParsedWebhook:
        assert go_on.wait(60)
        return parse(*given)

    monkeypatch.setattr(endpoint, "parse_webhook", parse_slowly)
    async with served(settings(tmp_path, {"one": Scripted()}, intake={"max_body": "1MiB"})) as client:
        try:
            seconds, code, error = await post_webhook(client, large())
            assert (code, error) == (
                503,
                "not accepted, send it again: after 2 s it still waited for its body to be parsed",
            )
            assert seconds < SECONDS + LATE
            monkeypatch.setattr(endpoint, "parse_webhook", parse)
            monkeypatch.setattr(endpoint, "run_large", asyncio.to_thread)  # so that it waits for room alone
            monkeypatch.setattr(endpoint, "ANSWER_SECONDS", 60.0)
            another = asyncio.create_task(post(client, large("another")))
            await asyncio.wait([another], timeout=0.5)
            assert not another.done()
        finally:
            go_on.set()
        assert (await another)[0] == 202
