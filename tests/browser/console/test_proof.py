"""The page of the proofs: how each channel is, and thirty days in which a gap is a gap."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.accessibility import check_accessibility
from tests.browser.console.proof_scene import open_proven
from tests.browser.console.served_console import open_page

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


@pytest.mark.played
async def test_a_month_is_a_picture_and_a_list_that_are_accessible_and_fit_a_phone(
    chromium: Browser, tmp_path: Path
) -> None:
    async with open_proven(tmp_path) as console, open_page(chromium, f"{console.url}/proof") as page:
        row = page.locator("tr", has=page.get_by_role("link", name="pagerduty"))
        await expect(row).to_contain_text("lost at channel: HTTP 400: Invalid routing key")
        pictures = page.get_by_role("img")
        await expect(pictures).to_have_count(3)
        await expect(pictures.last).to_have_accessible_name(
            re.compile("^Thirty days of pagerduty, in UTC: path proven")
        )
        await expect(pictures.first.locator("path")).to_have_count(4)  # proven, partly, lost at two hops
        await page.locator("#month-list summary").click()
        listed = page.locator("#month-list tr", has=page.get_by_role("rowheader", name="slack"))
        await expect(listed).to_contain_text(
            ["lost at alertmanager", "no proof", "proven, and failed at the next level", "lost at prometheus"]
        )
        await check_accessibility(page)
