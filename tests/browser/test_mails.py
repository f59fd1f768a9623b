"""Mails as a mail program shows them."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.accessibility import COLOURS, find_overflow, find_violations
from tests.browser.mail_pictures import list_scenes, open_mail

pytestmark = [pytest.mark.played, pytest.mark.asyncio(loop_scope="session")]  # with the browser


async def test_every_mail_fits_a_phone_and_is_readable_on_light_and_dark_screens(chromium: Browser) -> None:
    for name, scene in list_scenes().items():
        for scheme in ("light", "dark"):
            async with open_mail(chromium, scene, "phone", scheme) as page:
                assert not await find_overflow(page), name
                assert await find_violations(page, COLOURS) == [], (name, scheme)


async def test_a_mail_shows_its_picture_and_its_fix_and_loads_nothing(chromium: Browser) -> None:
    async with open_mail(chromium, list_scenes()["firing"], "wide") as page:
        assert await page.locator("img").evaluate("image => image.complete && image.naturalWidth > 500")
        await expect(page.locator("pre").first).to_contain_text("gcloud logging read")
        await expect(page.locator("pre").nth(1)).to_contain_text("gcloud kms keys add-iam-policy-binding")
        loaded = await page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [address for address in loaded if not address.startswith("data:")] == []


async def test_what_an_alert_says_is_text(chromium: Browser) -> None:
    async with open_mail(chromium, list_scenes()["hostile"], "wide") as page:
        await expect(page.locator("h1")).to_contain_text("<script>alert(1)</script>")
        assert await page.locator("script, h1 img").count() == 0
