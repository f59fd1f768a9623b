"""The pages of routes and of the report, as a person uses them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser.accessibility import check_accessibility, find_overflow
from tests.browser.console.report_scene import EXPLAINED, LABELS, open_reported_console
from tests.browser.console.served_console import Console, open_page

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def reported(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    async with open_reported_console(tmp_path_factory.mktemp("reported")) as console:
        yield console


@pytest.mark.parametrize("path", [EXPLAINED, "/report?since=7d"])
async def test_both_are_accessible_and_fit_a_phone(chromium: Browser, reported: Console, path: str) -> None:
    async with open_page(chromium, f"{reported.url}{path}") as page:
        await expect(page.locator(".report")).to_be_visible()
        await check_accessibility(page)


async def test_pasted_labels_lead_through_both_trees(chromium: Browser, reported: Console) -> None:
    async with open_page(chromium, f"{reported.url}/routes") as page:
        await page.get_by_label("Labels").focus()
        await page.keyboard.type(LABELS)
        await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer h2")).to_have_text("It goes to slack email")
        chosen = page.locator(".chosen > .rule")
        await expect(chosen).to_have_count(2)
        await expect(chosen.nth(0)).to_contain_text('alertname=~"^KMS.*" → kms-security webhook takes it')
        await expect(chosen.nth(1)).to_contain_text("routes.1 receiver kms-security")
        await expect(page.locator(".condition.failed")).to_have_text(
            [
                *('alertname="Watchdog"', 'alertname="KMSPathProof"', 'alertname=~"^Relay.*"'),
                *('alertname="KMSPathUnproven"', 'severity="critical"', "receiver kms-critical"),
            ]
        )
        await expect(page.locator("#problems-title + ul")).to_contain_text(
            "has no receiver <img src=x onerror=alert(1)>"
        )
        await page.get_by_label("Receiver").fill("kms-critical")
        await page.get_by_role("button", name="Explain").click()
        await expect(page.locator(".answer h2")).to_have_text("It goes to slack email pagerduty")
        await expect(page.locator(".reasons li").nth(1)).to_contain_text(
            "would not give it to the receiver kms-critical"
        )
        await page.get_by_label("Labels").fill("nonsense")
        await page.get_by_role("button", name="Explain").click()
        await expect(page.get_by_role("alert")).to_contain_text("one name=value a line")


async def test_a_report_is_chosen_read_and_printed(chromium: Browser, reported: Console) -> None:
    async with open_page(chromium, f"{reported.url}/report") as page:
        await expect(page.locator(".presets [aria-current]")).to_have_text("30 days")
        await page.get_by_role("link", name="7 days").click()
        await expect(page.locator("#figures.report")).to_be_visible()
        slack = page.locator("table").first.locator("tr", has=page.get_by_role("rowheader", name="slack"))
        await expect(slack).to_contain_text("1 min 40 s")
        never = page.locator("#never-title + .scroll")
        await expect(never).to_contain_text('=HYPERLINK("http://evil.example")')
        await expect(never.get_by_role("link", name="2", exact=True)).to_have_attribute(
            "href", "/deliveries?state=dead&channel=pagerduty"
        )
        async with page.expect_download() as download:
            await page.get_by_role("link", name="CSV").click()
        assert (await (await download.value).path()).read_text().startswith("from,to,complete_since,section,channel,")

        await page.emulate_media(media="print")
        await expect(page.locator("nav.pages")).to_be_hidden()
        await expect(page.locator("form.period")).to_be_hidden()
        printed = page.locator("#late-title + .scroll time").first
        assert await printed.evaluate("node => getComputedStyle(node, '::after').content !== 'none'")
        assert not await find_overflow(page)

        await page.emulate_media(media="screen")
        await page.get_by_label("From").fill("2020-01-01")
        await page.get_by_label("to", exact=True).fill("2020-01-31")
        await page.get_by_role("button", name="Show").click()
        await expect(page.locator(".range")).to_contain_text("2020-01-01 00:00:00 UTC to 2020-02-01 00:00:00 UTC")
        await expect(page.locator(".totals")).to_contain_text("none started")
