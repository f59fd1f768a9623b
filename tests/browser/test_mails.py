"""Mails as a mail program shows them, and the pictures of them in the documents."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.mail_pictures import COMMITTED, IMAGES, list_scenes, open_mail

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser
_CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = e => { for (; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
        return [255, 255, 255]; };
    return [...document.querySelectorAll("body *")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .map(e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
            return [(a + .05) / (b + .05), e.textContent.trim().slice(0, 40)]; })
        .filter(([contrast]) => contrast < 4.5);
}"""  # WCAG 2.2, success criterion 1.4.3


async def test_every_mail_fits_a_phone_and_is_readable_on_light_and_dark_screens(chromium: Browser) -> None:
    for name, scene in list_scenes().items():
        for scheme in ("light", "dark"):
            async with open_mail(chromium, scene, "phone", scheme) as page:
                assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
                assert await page.evaluate(_CONTRAST) == [], (name, scheme)


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


async def test_the_documents_have_the_pictures() -> None:
    assert all((IMAGES / f"mail-{name}.png").exists() for name in COMMITTED)
