"""The start page."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.console.served_console import Console, find_overflow, find_violations, open_page

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_shows_the_channels_and_is_accessible(chromium: Browser, console: Console, scheme: str) -> None:
    async with open_page(chromium, f"{console.url}/", scheme=scheme) as page:
        await expect(page.locator("#channel_states .card")).to_have_count(3)
        assert await find_violations(page) == []
        await page.set_viewport_size({"width": 320, "height": 640})
        assert not await find_overflow(page)


async def test_a_change_is_loaded_without_a_reload(chromium: Browser, console: Console) -> None:
    async with open_page(chromium, f"{console.url}/") as page:
        await page.locator("#channel_states").evaluate("node => node.dataset.old = 'yes'")
        await console.post(group="another")
        await expect(page.locator("#channel_states")).not_to_have_attribute("data-old", "yes")
