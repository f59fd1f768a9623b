"""The first page: what it shows, that it stays live, and what it says when it is not."""

import pytest
from playwright.async_api import Browser, expect

from services.relay.console import events
from tests.browser.console.served_console import (
    Console,
    check_accessibility,
    check_reloads,
    open_page,
    record_reloads,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_it_shows_each_part_and_is_accessible(chromium: Browser, console: Console) -> None:
    async with open_page(chromium, f"{console.url}/") as page:
        await expect(page.locator(".cards > .card")).to_have_count(3)
        names = page.locator(".path > .card h3")
        await expect(names).to_contain_text(["Exporter", "Rules", "Alertmanager", "Intake", "Store", "Sender"])
        await expect(page.locator(".path > .card").first).to_contain_text("Not known without messages.prometheus_url")
        await check_accessibility(page)


async def test_changes_are_polled_twice_a_second_and_a_delivery_appears_without_a_reload(
    chromium: Browser, console: Console
) -> None:
    assert events._POLL_SECONDS <= 0.5
    async with open_page(chromium, f"{console.url}/") as page:
        await page.evaluate("window.sameDocument = true")
        before = await page.locator(".open li").count()
        await record_reloads(page)
        await console.post(group="another")
        await expect(page.locator(".open li")).to_have_count(before + 1)
        await check_reloads(page)
        assert await page.evaluate("window.sameDocument") is True
