"""An incident in Slack as a person sees it."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.slack_pictures import SIZES, get_thread, open_page, run_scene
from tests.browser.slack_scenes import TITLE

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_an_incident_is_one_message_that_changes_and_fits_a_phone(chromium: Browser) -> None:
    async with run_scene("resolved") as url, open_page(chromium, url, "wide") as page:
        message = get_thread(page).locator(".message").first
        header = "Resolved after 12 min: role_missing: backend (production) cannot encrypt with ledger-kek"
        await expect(message.locator(".message-header").first).to_have_text(header)
        await expect(message).to_contain_text("fired from 2026-11-24 22:46:10 UTC to 2026-11-24 22:58:10 UTC (12 min)")
        replies = get_thread(page).locator("details")
        await expect(replies.locator(".message")).to_have_count(3)
        await expect(replies.locator(".message").first).to_contain_text("First steps of the runbook")
        await expect(replies).to_contain_text(TITLE)
        await expect(replies).to_contain_text("1 new (backend-2:8000)")
        for size in SIZES.values():
            await page.set_viewport_size(size)
            assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), size
            await expect(message).to_be_visible()


async def test_twenty_alerts_are_one_table_and_what_alerts_say_is_no_mark_up(chromium: Browser) -> None:
    async with run_scene("twenty") as url, open_page(chromium, url, "phone") as page:
        table = page.locator("#slack .message pre")
        await expect(table).to_have_count(1)
        assert len((await table.inner_text()).splitlines()) == 21
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    async with run_scene("hostile") as url, open_page(chromium, url, "wide") as page:
        message = get_thread(page).locator(".message").first
        await expect(message).to_contain_text("<!channel> <!here>")
        await expect(message.locator("a[href*=evil]")).to_have_count(0)
