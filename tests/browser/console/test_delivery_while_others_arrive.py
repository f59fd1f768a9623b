"""Deliveries as a person finds them, looks at one and sends it elsewhere, while others arrive."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.accessibility import find_violations
from tests.browser.console.served_console import open_console, open_page
from tests.browser.lasting_page import lasting_page

pytestmark = [pytest.mark.played, pytest.mark.asyncio(loop_scope="session")]  # with the browser


async def test_a_page_that_cannot_be_read_again_does_not_appear_live(chromium: Browser, tmp_path: Path) -> None:
    async with open_console(tmp_path) as console, lasting_page(chromium, [], [], reduced_motion=True) as page:
        live = page.locator("#live")
        await page.goto(f"{console.url}/deliveries")
        await expect(live).to_have_text("Live")
        (tmp_path / "relay.db").rename(tmp_path / "away.db")
        try:
            await expect(live).to_contain_text("Not live, what is shown is from ")
            await expect(live).to_contain_text("it cannot be read now; trying again.")
            await expect(page.locator("body.old .delivery-list")).to_have_count(1)
            assert await find_violations(page) == []
        finally:
            (tmp_path / "away.db").rename(tmp_path / "relay.db")
        await expect(live).to_have_text("Live")
        await expect(page.locator("body.old")).to_have_count(0)


async def test_a_choice_stays_while_the_page_is_loaded_again_and_the_keyboard_sends_it(
    chromium: Browser, tmp_path: Path
) -> None:
    async with (
        open_console(tmp_path, routes=[{"channels": ["slack"]}]) as console,
        open_page(chromium, f"{console.url}/deliveries") as page,
    ):
        await page.locator(".delivery-list a").first.click()
        await page.locator("#live.on").wait_for()
        await page.wait_for_timeout(1200)
        select = page.get_by_label("Other channel")
        await select.focus()
        await page.keyboard.press("p")  # the first that begins so
        await expect(select).to_have_value("pagerduty")
        await page.keyboard.press("Tab")
        async with page.expect_response(lambda answer: answer.request.headers.get("hx-target") == "delivery_state"):
            await console.post(group="meanwhile")
        await page.wait_for_timeout(200)
        await expect(select).to_have_value("pagerduty")
        await expect(page.get_by_role("button", name="Send", exact=True)).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#delivery_state")).to_contain_text("on pagerduty")
        await console.settle()
        await expect(page.locator("#delivery_state .state")).to_have_text("delivered")
