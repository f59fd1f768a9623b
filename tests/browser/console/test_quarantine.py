"""Dead letters and quarantine, as a person uses the page."""

import asyncio
import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.accessibility import check_accessibility
from tests.browser.console.quarantine_scene import give_up
from tests.browser.console.served_console import open_console, open_page
from tests.relay.served_relay import post, webhook_of

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

HOSTILE = "</textarea><script>alert(1)</script><img src=//evil.example.org/x>"


async def replace_in_body(page: Page, old: str, new: str) -> None:
    body = page.get_by_label("The webhook")
    await body.fill((await body.input_value()).replace(old, new))


async def test_dead_letters_are_retried_without_a_reload(chromium: Browser, tmp_path: Path) -> None:
    async with (
        open_console(tmp_path) as console,
        open_page(chromium, f"{console.url}/quarantine") as page,
    ):
        await expect(page.get_by_text("Nothing was given up.")).to_be_visible()
        await expect(page.get_by_text("Nothing was refused.")).to_be_visible()
        await give_up(tmp_path, "email", "rejected", 3)
        await give_up(tmp_path, "slack", "unauthorized", 1)
        groups = page.locator("#dead_letters .groups > li")
        await expect(groups).to_have_count(2)
        await expect(groups.first).to_contain_text("email: rejected")
        await expect(groups.nth(1)).to_contain_text("put the current secret into its file")
        await check_accessibility(page)

        await groups.first.get_by_role("button", name="Retry").first.press("Enter")
        await expect(page.locator(".flash")).to_contain_text("is sent again on email.")
        await expect(page.locator("#dead_letters h2 .tag")).to_have_text("3")
        await page.get_by_role("button", name="Retry all 3").press("Enter")
        await expect(page.locator(".flash")).to_have_text("3 dead letters are sent again.")
        await expect(page.get_by_text("Nothing was given up.")).to_be_visible()


@pytest.mark.played
async def test_who_is_about_to_retry_a_group_does_not_retry_another_that_grew_meanwhile(
    chromium: Browser, tmp_path: Path
) -> None:
    async with open_console(tmp_path) as console, open_page(chromium, f"{console.url}/quarantine") as page:
        await give_up(tmp_path, "email", "rejected", 2)
        await page.reload()
        await page.locator("#live.on").wait_for()
        await page.get_by_role("button", name="Retry these 2").focus()
        await give_up(tmp_path, "slack", "unauthorized", 3)
        await console.post(group="so that the page is loaded again")
        groups = page.locator("#dead_letters .groups > li")
        await expect(groups.first).to_contain_text("slack: unauthorized")
        await expect(groups.nth(1).get_by_role("button", name="Retry these 2")).to_be_focused()


async def test_a_refused_webhook_is_repaired_previewed_and_replayed(chromium: Browser, tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        wrong = json.loads(webhook_of(group="refused", version="3"))
        wrong["alerts"][0]["annotations"]["summary"] = HOSTILE
        await post(console.client, json.dumps(wrong).encode(), "/alerts?source=eu")
        await post(console.client, HOSTILE.encode() * 2000)
        async with open_page(chromium, f"{console.url}/quarantine") as page:
            await expect(page.locator("#refused .groups > li")).to_have_count(2)
            await page.locator("#refused").get_by_role("link", name="Open, repair, replay").nth(1).press("Enter")
            await check_accessibility(page)
            await replace_in_body(page, '"firing"', '"burning"')
            await page.get_by_role("button", name="Show what a replay would do").click()
            await expect(page.get_by_role("alert")).to_contain_text("expected")
            await replace_in_body(page, '"burning"', '"firing"')
            await replace_in_body(page, '"version": "3"', '"version": "4"')
            await page.get_by_role("button", name="Show what a replay would do").press("Enter")
            await expect(page.get_by_text("Notifies slack, email, pagerduty")).to_be_visible()
            await check_accessibility(page)
            await page.get_by_role(
                "button", name="Replay", exact=True
            ).click()  # the box is not checked: the browser says so
            await expect(page.get_by_text("Notifies slack")).to_be_visible()
            await page.get_by_label("I have read what this does").press("Space")
            await page.get_by_role("button", name="Replay", exact=True).press("Enter")
            await expect(page.locator(".flash")).to_have_text("Accepted: it goes to slack, email, pagerduty.")
            await expect(page.locator("#refused .groups > li").nth(1)).to_contain_text("Replayed by anonymous")
            await console.settle()
            await page.goto(f"{console.url}/quarantine/2")  # it is large: read, and downloaded
            await expect(page.locator("pre.body")).to_contain_text(HOSTILE)
            async with page.expect_download() as downloading:
                await page.get_by_role("link", name="Download").click()
            file = await (await downloading.value).path()
            assert await asyncio.to_thread(file.read_bytes) == HOSTILE.encode() * 2000
