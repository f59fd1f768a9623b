"""A thousand keys: a page stays small, what fails comes first wherever it was, and the search finds the rest."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from shared.kms.reason import Reason
from tests.browser.conftest import opened
from tests.browser.scenes import NOW
from tests.browser.served_board import serve_board
from tests.browser.test_board_live import HEARD, card, focus

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

NAMES = [f"key-{n}" for n in range(1000)]


def probe(history: History, target: str, ago: float, reason: Reason | None = None) -> None:
    calls = [Call(Operation.ENCRYPT, 0.02), Call(Operation.DECRYPT, 0.03)]
    if reason:
        calls = [Call(Operation.ENCRYPT, 0.02, Failure(reason, "said"))]
    history.add_probe(ProbeResult("ledger", target, NOW - ago, tuple(calls), "v/1"))


@pytest.fixture(scope="module")
def hour() -> History:
    history = History(clock=lambda: NOW)
    history.configure(dict.fromkeys([("ledger", name) for name in NAMES], TargetKey()), [])
    for name in NAMES:
        for ago in range(3590, 0, -30):
            probe(history, name, ago)
    return history


@pytest_asyncio.fixture(loop_scope="session")
async def large_board(chromium: Browser, hour: History, browser_errors: list[str]) -> AsyncIterator[Page]:
    async with (
        serve_board(hour, clock=lambda: NOW) as address,
        opened(chromium, f"http://{address}/", browser_errors) as page,
    ):
        yield page


async def test_a_page_contains_fifty_of_a_thousand_and_leads_to_the_others(large_board: Page) -> None:
    await expect(large_board.locator(".verdict")).to_have_text("All 1000 healthy")
    await expect(large_board.locator("[data-kind=keys] .total")).to_have_text("1000")
    await expect(large_board.get_by_role("article")).to_have_count(50)
    assert await large_board.locator("*").count() < 5000
    await large_board.get_by_role("navigation", name="Pages of keys").get_by_role("link", name="Next").click()
    await expect(large_board.get_by_role("navigation", name="Pages of keys")).to_contain_text("Page 2 of 20")
    await expect(large_board.locator("[data-kind=keys] h3").first).to_have_text("key-50")
    await large_board.evaluate("window.sameDocument = true")  # the first page was meant to be left


async def test_a_key_that_fails_comes_to_the_first_page_and_is_reported(large_board: Page, hour: History) -> None:
    await expect(card(large_board, "key-0").locator(".state")).to_have_text("Healthy")
    await large_board.evaluate(HEARD)
    probe(hour, "key-777", 1, Reason.KEY_DISABLED)
    await focus(large_board)
    await expect(large_board.locator("[data-kind=keys] h3").first).to_have_text("key-777")
    await expect(card(large_board, "key-777").locator(".state")).to_have_text("Failing")
    await expect(large_board.get_by_role("article")).to_have_count(50)
    assert await large_board.evaluate("heard") == ["key-777: Failing, key_disabled at encrypt"]
    probe(hour, "key-777", 0)
    await focus(large_board)
    await expect(large_board.locator("[data-kind=keys] h3").first).to_have_text("key-0")
    await expect(large_board.locator("[data-kind=keys] h3").last).to_have_text(
        "key-49"
    )  # fetched anew: it had left the page
    assert await large_board.evaluate("heard") == ["key-777: Failing, key_disabled at encrypt"]


@pytest.mark.played
async def test_when_all_of_them_change_at_once_the_page_is_whole(large_board: Page, hour: History) -> None:
    for name in NAMES:
        probe(hour, name, 0, Reason.UNAVAILABLE)
    await focus(large_board)
    await expect(large_board.locator(".verdict")).to_have_text("All 1000 failing")
    await expect(large_board.locator(".card.failing")).to_have_count(50)
    spoken = await large_board.locator("#changes").text_content()
    assert spoken
    assert len(spoken) < 500  # nobody is read a thousand names
    for name in NAMES:
        probe(hour, name, 0)
    await focus(large_board)
    await expect(large_board.locator(".verdict")).to_have_text("All 1000 healthy")


@pytest.mark.played
async def test_the_filter_finds_one_of_a_thousand(large_board: Page) -> None:
    await large_board.get_by_role("searchbox").press_sequentially("key-999")
    await expect(large_board.locator("[data-kind=keys] h3")).to_have_text(["key-999"])
    await expect(large_board.locator("[data-kind=keys] .total")).to_have_text("1")
    await expect(large_board.locator(".verdict")).to_have_text("All 1000 healthy")
