"""The page for everybody: narrow windows, both colour schemes, the keyboard, a screen reader."""

from itertools import product
from typing import Final, Literal

import pytest
from playwright.async_api import Page, expect

from tests.browser.senders import Senders

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")


async def test_nothing_is_wider_than_the_window(page: Page, senders: Senders) -> None:
    await senders.everything()
    await senders.post("x" * 140, body="y" * 500)
    await senders.page("trigger", "z" * 500, dedup_key="w" * 255)
    await expect(page.locator(".message .b-header", has_text="xxx")).to_be_visible()
    await expect(page.locator(".incident")).to_have_count(2)
    for width, scheme in product((1280, 390, 320), SCHEMES):
        await page.set_viewport_size({"width": width, "height": 640})
        await page.emulate_media(color_scheme=scheme)
        for view in ("Slack", "Mail", "PagerDuty"):
            if width < 1024:
                await page.locator(".views").get_by_role("button", name=view).click()
            wider = await page.evaluate(
                """() => [...document.querySelectorAll("body *")].filter((node) =>
                     node.scrollWidth > node.clientWidth + 1
                     && ["auto", "scroll"].includes(getComputedStyle(node).overflowX)).map((node) => node.className)"""
            )
            assert wider == [], (width, scheme, view)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme, view)
        expected = {"light": "rgb(243, 245, 247)", "dark": "rgb(15, 18, 22)"}[scheme]
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == expected


async def test_an_opened_mail_has_the_whole_width_of_a_phone_and_its_text_no_scroll_bar(
    page: Page, senders: Senders
) -> None:
    await page.set_viewport_size({"width": 390, "height": 844})
    await senders.mail("first", "<h1>Firing</h1>", "line\n" * 100)
    await page.locator(".views").get_by_role("button", name="Mail").click()
    await page.locator(".mail-open").click()
    widths = await page.evaluate("[...document.querySelectorAll('#mails, iframe')].map((node) => node.offsetWidth)")
    assert widths[0] == widths[1] > 360
    await page.get_by_role("button", name="Plain text").click()
    assert await page.locator(".mail-text").evaluate("node => node.scrollHeight === node.clientHeight")


CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if ((colour[3] ?? 1) === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.className, walker.currentNode.data]);
  }
  return found;
}"""


async def test_all_text_has_enough_contrast(page: Page, senders: Senders) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    await senders.everything()
    await senders.page("resolve")
    await senders.page("trigger", payload={"severity": "warning"})
    await page.get_by_role("button", name="Break KMS").click()
    await expect(page.locator("#kms-now")).to_contain_text("broken")
    await expect(page.locator(".incident")).to_have_count(2)
    await page.get_by_text("1 reply").click()
    for scheme in SCHEMES:
        await page.emulate_media(color_scheme=scheme)
        found = await page.evaluate(CONTRASTS)
        assert len(found) > 40
        assert [entry for entry in found if entry[0] < 4.5] == [], scheme


FOCUS = """() => {
  const node = document.activeElement;
  if (node === document.body) return ["", true];
  const style = getComputedStyle(node);
  return [node.id || node.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""


async def test_the_keyboard_reaches_everything_and_the_focus_is_seen(page: Page, senders: Senders) -> None:
    await senders.everything()
    await expect(page.locator(".incident")).to_have_count(1)
    reached = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        name, outline = await page.evaluate(FOCUS)
        if name:
            assert outline, name
            reached.add(name)
    wanted = {"Skip to what arrived", "kms-fault", "kms-break", "kms-heal", "slack-scroll", "#security-ops"}
    assert wanted | {"Runbook", "Dashboard", "1 reply", "Timeline"} <= reached
    await page.locator(".mail-open").focus()
    await page.keyboard.press("Enter")
    await expect(page.frame_locator("iframe").get_by_role("heading")).to_have_text("Firing")


async def test_every_part_has_a_name_for_a_screen_reader(page: Page, senders: Senders) -> None:
    await senders.everything()
    await expect(page.get_by_role("main")).to_be_visible()
    for name in ("Slack", "Mailbox", "PagerDuty", "Key management service"):
        await expect(page.get_by_role("region", name=name, exact=True)).to_have_count(1)
    await expect(page.locator("#arrivals")).to_have_attribute("aria-live", "polite")
    unnamed = await page.evaluate(
        """() => [...document.querySelectorAll("button, a, select, iframe, img:not([alt])")]
             .filter((node) => !(node.textContent.trim() || node.labels?.length || node.title))
             .map((node) => node.outerHTML)"""
    )
    assert unnamed == []
