"""The pages of deliveries: a list that is filtered and live, and one delivery with what its reader saw."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from tests.browser.accessibility import check_accessibility
from tests.browser.console.delivery_scene import open_deliveries
from tests.browser.console.served_console import Console, check_reloads, open_console, open_page, record_reloads

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def find_delivery(console: Console, query: str) -> str:
    async with console.client.get(f"/api/deliveries?{query}") as response:
        return str((await response.json())["deliveries"][0]["id"])


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    """A relay for the tests here, which change its deliveries."""
    # To these nothing goes by itself; the second name alone is wider than a phone.
    channels = {"audit-log": {"kind": "log"}, "audit-log-of-" + "all-who-are-on-call-" * 5: {"kind": "log"}}
    folder, unpaced = tmp_path_factory.mktemp("deliveries"), {"enabled": False}
    async with open_console(folder, channels=channels, pacing=unpaced) as running:
        yield running


async def test_the_list_is_live_and_filtered_from_the_keyboard(chromium: Browser, own: Console) -> None:
    async with open_page(chromium, f"{own.url}/deliveries") as page:
        rows = page.locator(".delivery-list tbody tr")
        await expect(rows).to_have_count(15)
        await check_accessibility(page)
        link = rows.nth(3).get_by_role("link")
        await link.focus()
        await record_reloads(page)
        await own.post(group="appears")
        await expect(rows).to_have_count(18)
        await check_reloads(page)
        await expect(page.locator(":focus")).to_have_count(1)  # the link is where it was for whoever reads on

        await page.get_by_label("Text").fill("error rate")
        await page.keyboard.press("Enter")
        await expect(rows).to_have_count(0)
        await expect(page.locator("#delivery_list")).to_contain_text("No delivery matches.")
        await page.get_by_role("link", name="Show all").first.click()
        await page.get_by_label("Text").fill("highcrypto")
        await page.get_by_label("State").select_option("delivered")
        await page.get_by_label("Channel").fill("pagerduty")
        await page.get_by_role("button", name="Filter").click()
        await expect(rows).to_have_count(1)
        assert page.url.endswith("?text=highcrypto&state=delivered&channel=pagerduty&alertname=&service=&since=&until=")
        await expect(page.get_by_label("Text")).to_have_value("highcrypto")
        await rows.get_by_role("link").click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("KMSHighCryptoErrorRate")


async def test_each_message_is_shown_as_its_reader_sees_it(chromium: Browser, own: Console) -> None:
    timelines = {}
    for channel in ("slack", "email", "pagerduty"):
        delivery = await find_delivery(own, f"channel={channel}&alertname=KMSHighCryptoErrorRate")
        async with open_page(chromium, f"{own.url}/deliveries/{delivery}") as page:
            if channel == "email":
                mail = page.frame_locator("iframe.mail")
                await expect(mail.get_by_text("KMSHighCryptoErrorRate on backend").first).to_be_visible()
                assert await page.locator("iframe.mail").get_attribute("sandbox") == (
                    "allow-popups allow-popups-to-escape-sandbox"
                )
            else:
                await expect(page.locator(".message")).to_contain_text("KMSHighCryptoErrorRate")
            await check_accessibility(page)
            timelines[channel] = await page.locator("#delivery_attempts").inner_text()
    assert '"ok": true' in timelines["slack"]
    assert "dedup_key" in timelines["pagerduty"]
    assert "250 2.0.0" in timelines["email"]
    slack = await find_delivery(own, "channel=slack")
    async with aiohttp.ClientSession() as http, http.get(f"{own.url}/deliveries/{slack}/open") as response:
        assert response.url.query["archives"].startswith("C")  # the page that shows the message
        assert response.status == 200


async def test_a_dead_letter_is_retried_and_a_delivery_sent_elsewhere(chromium: Browser, own: Console) -> None:
    refusing = ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error="invalid_arguments")
    own.stand_ins.faults.add(refusing)
    await own.post(group="refused")
    await own.settle()
    own.stand_ins.faults.clear()
    dead = await find_delivery(own, "channel=slack&state=dead")
    async with open_page(chromium, f"{own.url}/deliveries/{dead}") as page:
        state = page.locator("#delivery_state")
        await expect(state.locator(".state")).to_have_text("dead")
        await expect(page.locator(".attempts")).to_contain_text("Slack answered invalid_arguments")
        await page.get_by_role("button", name="Retry").press("Enter")
        await expect(page.locator(".flash")).to_have_text(
            "Retried: this delivery has the current state of its incident."
        )
        assert dead not in page.url
        await expect(state.locator(".state")).to_have_text("delivered")  # without a reload
        await expect(page.locator(".message")).to_be_visible()

        await page.get_by_label("Other channel").select_option("email")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator(".flash")).to_contain_text("Not sent: email has the current state of its incident")
        await page.get_by_label("Other channel").select_option("audit-log")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator(".flash")).to_contain_text("Sent to audit-log")
        await expect(state).to_contain_text("Sent elsewhere by anonymous; it was for slack.")
        await expect(state.locator(".state")).to_have_text("delivered")
        await page.goto(f"{own.url}/deliveries/{dead}")
        await expect(page.get_by_role("link", name="the delivery that supersedes it")).to_be_visible()


@pytest.mark.played
@pytest.mark.played
async def test_a_hundred_thousand_deliveries_are_paged_both_ways(chromium: Browser, tmp_path: Path) -> None:
    async with open_deliveries(tmp_path, 100_000) as seeded, open_page(chromium, f"{seeded.url}/deliveries") as page:
        rows = page.locator(".delivery-list tbody tr")
        await expect(rows).to_have_count(50)
        top, tops = rows.first.get_by_role("link"), []
        for _ in range(3):
            tops.append(await top.get_attribute("href") or "")
            await page.get_by_role("link", name="Older", exact=True).click()
            await expect(top).not_to_have_attribute("href", tops[-1])
            await expect(rows).to_have_count(50)
        assert len(set(tops)) == 3
        await page.get_by_role("link", name="Newer", exact=True).click()
        await expect(top).to_have_attribute("href", tops[2])
        await page.get_by_role("link", name="Newest", exact=True).click()
        await expect(top).to_have_attribute("href", tops[0])
        await page.goto(f"{seeded.url}/deliveries?text=is+nowhere")
        listed, older = page.locator("#delivery_list"), page.get_by_role("link", name="Search older ones")
        await expect(listed).to_contain_text("Searched 5,000 deliveries, back to")
        address = await older.get_attribute("href") or ""
        await older.click()
        await expect(older).not_to_have_attribute("href", address)
        await expect(listed).to_contain_text(": none matches")
        await expect(rows).to_have_count(0)
        await page.goto(f"{seeded.url}/deliveries?state=delivered&service=ledger")
        await expect(rows).not_to_have_count(0)
        await check_accessibility(page)
