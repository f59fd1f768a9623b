"""An installed Chromium in front of running stand-ins, or of an exporter's board.

To start it takes longer than most tests, so all tests of a process share one, and with it the event loop.
"""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator import emulator
from shared.config.settings import Address
from tests.browser.lasting_page import lasting_page
from tests.browser.senders import Senders
from tests.browser.served_board import Watched, watched
from tests.reserved_port import reserve_port

expect.set_options(timeout=15_000)  # ms; on a busy machine Chromium and a server may take seconds for what is quick

FLAGS = [
    "--no-sandbox",  # the tests may run as root, where Chromium's own sandbox does not start
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-site-isolation-trials",  # one process for all pages, instead of one more for each address
    "--renderer-process-limit=1",
]


def chromium_path() -> str:
    """Where it is, by the names that `ops/tools/require` knows, too."""
    # The first is the same Chromium without a window, and takes half the CPU time for a page.
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("chromium is not installed; on Debian: apt-get install chromium")
    return path


@pytest_asyncio.fixture(loop_scope="session")
async def kms() -> AsyncIterator[emulator.Emulator]:
    async with emulator.run_emulator() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def senders(kms: emulator.Emulator) -> AsyncIterator[Senders]:
    async with (
        run_stand_ins(emulator_faults=f"http://{kms.faults_address}") as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as http,
    ):
        yield Senders(stand_ins, http)


@asynccontextmanager
async def run_chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with run_chromium() as browser:
        yield browser


@pytest.fixture
def reserved_address() -> Iterator[Address]:
    """For a server that is away for a while and comes back."""
    with reserve_port() as address:
        yield address


@pytest.fixture
def browser_errors() -> list[str]:
    """What the browser complained of: errors, and violations of the Content-Security-Policy."""
    return []


@asynccontextmanager
async def opened(chromium: Browser, url: str, browser_errors: list[str]) -> AsyncIterator[Page]:
    """A page, open; it must not reload, and the browser must have nothing to complain of."""
    async with lasting_page(chromium, browser_errors, [], reduced_motion=True) as page:
        await page.goto(url)
        await page.locator("#live.on").wait_for()
        await page.evaluate("window.sameDocument = true")
        yield page
        assert await page.evaluate("window.sameDocument") is True
        assert browser_errors == []


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Browser, senders: Senders, browser_errors: list[str]) -> AsyncIterator[Page]:
    """The page of the stand-ins, live."""
    async with opened(chromium, f"http://{senders.stand_ins.http}/", browser_errors) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="session")
async def watch() -> AsyncIterator[Watched]:
    async with watched() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def board(chromium: Browser, watch: Watched, browser_errors: list[str]) -> AsyncIterator[Page]:
    """The board of `watch`, live."""
    async with opened(chromium, watch.url, browser_errors) as page:
        yield page
