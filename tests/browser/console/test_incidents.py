"""Incidents as people use them: find one, read its timeline, acknowledge, silence, and export it for a post-mortem."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser.accessibility import find_overflow, find_violations
from tests.browser.console.incident_scene import LABELS, TITLE, Night, find_path, open_night, open_past_night
from tests.browser.console.served_console import check_reloads, open_page, record_reloads

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def night(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Night]:
    async with open_night(tmp_path_factory.mktemp("night")) as night:
        yield night


async def test_the_list_is_filtered_and_stays_live(chromium: Browser, night: Night) -> None:
    async with open_page(chromium, f"{night.console.url}/incidents") as page:
        rows = page.locator(".incidents > li")
        await expect(rows.first).to_contain_text(TITLE)
        await expect(rows.first).to_contain_text("nobody acknowledged it")
        await expect(rows.first.locator(".chips li")).to_have_count(3)
        await page.get_by_label("Service").fill("ledger")
        await page.get_by_label("State").select_option("unacknowledged")
        await page.keyboard.press("Tab")
        await page.get_by_role("button", name="Filter").press("Enter")
        await expect(rows).to_have_count(1)
        assert "state=unacknowledged&alert=&service=ledger" in page.url
        await record_reloads(page)
        await night.send("firing", "another")
        await expect(rows).to_have_count(2)
        await check_reloads(page)
        await record_reloads(page)
        await night.send("resolved", "another")
        await expect(rows).to_have_count(1)
        await check_reloads(page)
        await page.get_by_label("Alert").fill("Other")
        await page.get_by_label("Alert").press("Enter")
        await expect(page.locator(".incidents > .empty")).to_contain_text("No incident matches")
        assert await find_violations(page) == []
        await page.get_by_role("link", name="Show all").first.click()
        await expect(rows.nth(1)).to_be_visible()
        assert await find_violations(page) == []
        await page.set_viewport_size({"width": 320, "height": 640})
        assert not await find_overflow(page)


async def test_one_is_read_from_the_fault_to_each_receipt(chromium: Browser, night: Night, tmp_path: Path) -> None:
    async with open_page(chromium, night.get_url()) as page:
        await expect(page.locator("h1")).to_have_text(TITLE)
        hops = page.locator(".hops tbody tr")
        await expect(hops.nth(0)).not_to_contain_text("not known")  # the exporter was asked by then
        assert (await hops.nth(1).inner_text()).split()[-4:] == ["1", "min", "15.0", "s"]
        names = [text.strip() for text in await hops.locator("th").all_inner_texts()]
        assert names[:3] == ["Fault", "Alert fires", "Webhook accepted"]
        assert set(names[3:]) == {"email", "slack", "pagerduty"}
        entries = page.locator(".timeline li")
        await expect(entries.first).to_contain_text("KMS fails: encrypt with ledger-kek, 3 round trips, it still fails")
        await expect(page.locator(".timeline .failed")).to_have_count(2)
        await expect(page.locator(".timeline .failed").first).to_contain_text("PagerDuty answered HTTP 503")
        await expect(page.locator(".timeline .delivered")).to_have_count(3)
        await expect(page.locator(".command").first).to_contain_text("gcloud logging read")
        await expect(page.locator(".command").nth(2)).to_contain_text("gcloud kms keys add-iam-policy-binding ledger")
        assert await find_violations(page) == []

        await page.set_viewport_size({"width": 320, "height": 640})
        assert not await find_overflow(page)
        assert await find_violations(page) == []  # the table of hops is scrolled, from the keyboard as well

        async with page.expect_download() as download:
            await page.get_by_role("link", name="Markdown").click()
        await (await download.value).save_as(tmp_path / "incident.md")
    text = (tmp_path / "incident.md").read_text()
    assert text.startswith("# Incident: role\\_missing: ledger (production) cannot encrypt with ledger-kek\n")
    assert f"- **Incident**: <{night.get_url()}>" in text
    assert "| 1 min 15.0 s | 1 min 15.0 s |" in text
    address = f"{night.get_url()}?fault=wait".replace("/incidents/", "/api/incidents/")
    async with night.console.client.get(address) as answer:
        kinds = [each["kind"] for each in (await answer.json())["timeline"]]
    assert (kinds[0], kinds.count("delivered"), kinds.count("failed")) == ("fault", 3, 2)


async def test_one_is_acknowledged_and_silenced_while_it_changes(chromium: Browser, night: Night) -> None:
    await night.send("firing", "acted")
    await night.console.settle()
    async with open_page(chromium, night.get_url("acted")) as page:
        # A comment that is being written stays while the rest of the page is loaded again.
        await page.get_by_text("Silence", exact=True).first.click()
        await page.get_by_label("Why").fill("key is replaced")
        await page.get_by_role("button", name="Acknowledge", exact=True).focus()
        await record_reloads(page)
        await night.send("firing", "acted")
        await expect(page.locator(".timeline .accepted")).to_have_count(2)
        await check_reloads(page)
        assert await page.get_by_label("Why").input_value() == "key is replaced"
        await expect(page.get_by_role("button", name="Acknowledge", exact=True)).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator(".flash")).to_have_text("Acknowledged.")
        await expect(page.locator("#incident_state")).to_contain_text("acknowledged by anonymous")
        await expect(page.locator(".timeline .acknowledged")).to_contain_text("Acknowledged by anonymous")

        await page.get_by_text("Silence", exact=True).first.click()
        await page.get_by_label("For").select_option("3600")
        await page.get_by_label("Why").fill("key is replaced")
        await page.get_by_role("button", name="Silence it").click()
        await expect(page.locator(".timeline .silenced")).to_contain_text("Silenced by anonymous until")
        await expect(page.locator("#incident_state")).to_contain_text("silenced by anonymous until")
        (silence,) = night.alertmanager.silences
        assert silence["comment"].startswith("key is replaced Silenced in the relay's console by anonymous")
        assert {each["name"]: each["value"] for each in silence["matchers"]} == LABELS

        await page.get_by_role("button", name="Unacknowledge").click()
        await expect(page.locator(".flash")).to_contain_text("Nobody takes care of it now")
        await record_reloads(page)
        await night.send("resolved", "acted")
        await expect(page.locator("#incident_state .state")).to_contain_text("Resolved")
        await check_reloads(page)
        await expect(page.locator(".hops")).to_have_count(2)
        await expect(page.get_by_role("button")).to_have_count(0)
        assert await find_violations(page) == []


KEEP_EVERY_FRAME = """
() => {
  window.zones = new Set();
  const keep = () => {
    for (const node of document.querySelectorAll("time[data-moment]")) {
      const minutes = node.textContent.match(/:([0-9]{2}):/)[1];
      const utc = new Date(Number(node.dataset.moment) * 1000).getUTCMinutes();
      window.zones.add(Number(minutes) === utc ? "UTC" : "local");
    }
    for (const node of document.querySelectorAll("[data-zone]")) window.zones.add(node.textContent);
    requestAnimationFrame(keep);
  };
  keep();
}
"""


async def test_times_stay_in_the_viewers_zone_while_parts_are_loaded_again(chromium: Browser, night: Night) -> None:
    await night.send("firing", "zoned")
    await night.console.settle()
    async with await chromium.new_context(timezone_id="Asia/Calcutta") as context:  # half an hour off
        page = await context.new_page()
        await page.goto(night.get_url("zoned"))
        await expect(page.locator(".timeline .accepted")).to_have_count(1)
        await page.evaluate(KEEP_EVERY_FRAME)
        for count in (2, 3):
            await night.send("firing", "zoned")
            await expect(page.locator(".timeline .accepted")).to_have_count(count)
        await night.console.settle()
        assert await page.evaluate("[...window.zones]") == ["local", "Asia/Calcutta"]
        await page.goto(f"{night.console.url}/incidents")
        await expect(page.locator("time[data-for]").first).to_have_attribute("title", re.compile(r"GMT\+5:30$"))


async def test_both_tables_of_hops_are_whole_on_a_desk(chromium: Browser, tmp_path: Path) -> None:
    async with open_past_night(tmp_path) as console, open_page(chromium, f"{console.url}{find_path()}") as page:
        tables = page.locator(".hop-tables > .scroll")
        await expect(tables).to_have_count(2)
        await expect(tables.first).to_contain_text("1 min 15.0 s")  # of the widest
        for width in (1920, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            assert not await tables.evaluate_all(
                "(all) => all.filter((each) => each.scrollWidth > each.clientWidth).length"
            )
