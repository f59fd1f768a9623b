"""The first page: what it shows, that it stays live, and what it says when it is not."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.accessibility import check_accessibility, find_overflow, find_violations
from tests.browser.console.served_console import Console, open_console, open_page

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_it_shows_each_part_and_is_accessible(chromium: Browser, console: Console) -> None:
    async with open_page(chromium, f"{console.url}/") as page:
        await expect(page.locator(".cards > .card")).to_have_count(3)
        names = page.locator(".path > .card h3")
        await expect(names).to_contain_text(["Exporter", "Rules", "Alertmanager", "Intake", "Store", "Sender", "Proof"])
        await expect(page.locator(".path > .card").first).to_contain_text("Not known without messages.prometheus_url")
        await check_accessibility(page)


async def test_on_a_phone_the_path_is_a_row_of_dots_until_something_is_wrong(chromium: Browser, tmp_path: Path) -> None:
    async with open_console(tmp_path) as console, open_page(chromium, f"{console.url}/", width=390, height=844) as page:
        dots, parts = page.locator(".dots summary"), page.locator(".path > .card")
        await expect(dots.locator(".led")).to_have_count(7)
        await expect(dots).to_contain_text("3 of 7 parts work, 4 not known")
        await expect(parts.first).not_to_be_visible()
        box = await dots.bounding_box()
        assert box is not None
        assert box["height"] < 48
        assert not await find_overflow(page)
        assert await find_violations(page) == []
        await dots.click()
        await expect(page.locator(".dots li").first).to_contain_text("Not known without messages.prometheus_url")
        await console.post(group="another")
        await expect(page.locator(".open li")).to_have_count(2)
        await expect(page.locator(".dots li").first).to_be_visible()  # it stays open while the page is loaded again
        await page.set_viewport_size({"width": 1280, "height": 844})
        await expect(dots).not_to_be_visible()
        await expect(parts.first).to_be_visible()
        await page.set_viewport_size({"width": 390, "height": 844})
        async with console.client.post("/alerts", data=b"{") as answer:  # the intake refuses it
            assert answer.status == 400
        await console.post(group="a further one")
        await expect(page.locator(".dots")).to_have_count(0)
        await expect(parts.nth(3)).to_be_visible()
        await expect(parts.nth(3)).to_contain_text("(400)")
        assert not await find_overflow(page)


async def test_the_menu_is_one_row_of_a_phone_with_the_open_page_in_it(chromium: Browser, console: Console) -> None:
    for path in ("/", "/audit"):
        async with open_page(chromium, f"{console.url}{path}", width=390, height=844, is_live=False) as page:
            menu = await page.locator(".pages").bounding_box()
            assert menu is not None
            assert menu["height"] < 56
            await expect(page.locator(".pages [aria-current]")).to_be_in_viewport(ratio=0.99)  # pixels are rounded
            assert not await find_overflow(page)
            assert await find_violations(page) == []
