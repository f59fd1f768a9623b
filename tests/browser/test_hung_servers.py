"""A server that hangs: it closes nothing and answers nothing, and its page must not go on as "Live"."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import yaml
from playwright.async_api import Browser, Page, expect

from shared.config.settings import Address
from tests import processes
from tests.fork_server import Forked, fork
from tests.relay.served_relay import until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
LOST = "Connection lost. What is shown is from "


def configure_relay(folder: Path, address: Address) -> list[str]:
    (folder / "token").write_text("a-token-of-the-tests")
    file = folder / "relay.yml"
    document = {
        "listen": str(address),
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"one": {"kind": "log"}},
        "default_channels": ["one"],
    }
    file.write_text(yaml.safe_dump(document))
    return ["services.relay", "--config", str(file)]


def configure_exporter(folder: Path, address: Address) -> list[str]:
    file = folder / "exporter.yml"
    target = {"name": "ledger", "key": KEY, "endpoint": "127.0.0.1:1", "insecure": True}
    file.write_text(yaml.safe_dump({"listen": str(address), "service": "backend", "targets": [target]}))
    return ["services.exporter", "--config", str(file)]


def configure_stand_ins(folder: Path, address: Address) -> list[str]:
    (folder / "slack").write_text("xoxb-test")
    (folder / "pagerduty").write_text("0" * 32)
    secrets = ("--slack-token-file", str(folder / "slack"), "--pagerduty-key-file", str(folder / "pagerduty"))
    ports = ("--http", str(address), "--smtp", "127.0.0.1:0", "--sockets", "127.0.0.1:0")
    return ["ops.demo.stand_ins", *secrets, *ports]


@asynccontextmanager
async def page_of(
    chromium: Browser, command: list[str], address: Address, log: Path
) -> AsyncIterator[tuple[Page, Forked]]:
    """The page of a server that is a process of its own; live, and with a clock that can be set forward."""

    async def listens() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(*address)
            writer.transport.abort()
            return True
        return False

    with log.open("wb") as output:
        process = await asyncio.to_thread(fork, *command, output=output)
    page = await chromium.new_page()
    try:
        await until(listens, 60)
        await page.clock.install()
        await page.goto(f"http://{address}/")
        await expect(page.locator("#live")).to_have_text("Live")
        yield page, process
    finally:
        await page.close()
        await processes.kill(process)


@pytest.mark.parametrize(
    ("configure", "seconds", "lost"),
    [
        pytest.param(configure_relay, 21, LOST, marks=pytest.mark.played),
        (configure_exporter, 7, LOST),
        (configure_stand_ins, 8, "Reconnecting"),
    ],
    ids=["relay", "exporter", "stand-ins"],
)
async def test_a_page_of_a_server_that_hangs_is_not_live_until_it_goes_on(
    configure: Callable[[Path, Address], list[str]],
    seconds: int,
    lost: str,
    chromium: Browser,
    reserved_address: Address,
    tmp_path: Path,
) -> None:
    command = configure(tmp_path, reserved_address)
    async with page_of(chromium, command, reserved_address, tmp_path / "log") as (page, process):
        live = page.locator("#live")
        process.send_signal(signal.SIGSTOP)
        await page.clock.run_for(seconds * 1000)
        await expect(live).to_contain_text(lost)
        await page.clock.run_for(60_000)
        await expect(live).to_contain_text(lost)
        process.send_signal(signal.SIGCONT)
        await expect(live).to_have_text("Live")


async def test_a_part_that_is_not_answered_is_said_although_the_connection_lives(
    chromium: Browser, reserved_address: Address, tmp_path: Path
) -> None:
    command = configure_relay(tmp_path, reserved_address)
    async with page_of(chromium, command, reserved_address, tmp_path / "log") as (page, _):
        live, requested = page.locator("#live"), asyncio.Event()
        # At each request, since an answer replaces the element and its attribute.
        shorten = (
            "event => { if (window.isHung && event.detail.xhr.timeout === 20000) event.detail.xhr.timeout = 300; }"
        )
        await page.evaluate(f"document.body.addEventListener('htmx:beforeSend', {shorten})")
        await page.route(f"http://{reserved_address}/", lambda _: requested.set())  # and never answered
        await page.evaluate("window.isHung = true; htmx.trigger('#now_state', 'sse:changed')")
        await requested.wait()
        await expect(live).to_contain_text("Not live, what is shown is from")
        await expect(live).to_contain_text("the relay does not answer; trying again.")
        await page.unroute_all()
        await page.evaluate("window.isHung = false; htmx.trigger('#now_state', 'sse:changed')")
        await expect(live).to_have_text("Live")
