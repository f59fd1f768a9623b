"""The first page in bad times: what fails, hostile alerts, a store that is away, a relay that is away."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, expect

from ops.demo.stand_ins.app import run_stand_ins
from services.relay.app import run_relay
from services.relay.config import RelaySettings
from services.relay.console import frame as events
from services.relay.delivery.attempt import open_local_sender
from shared.config.settings import Address
from shared.http.server import serve
from tests.browser.accessibility import COLOURS, find_violations
from tests.browser.console.served_console import build_settings, check_reloads, open_console, open_page, record_reloads
from tests.browser.lasting_page import lasting_page
from tests.relay.served_relay import TOKEN, post, webhook_of

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

HOSTILE = "<img src=//evil.example/x onerror=alert(1)>&amp;{{ 7*7 }}\"' hx-on:load=alert(2)"


@asynccontextmanager
async def running(settings: RelaySettings, address: Address) -> AsyncIterator[Address]:
    """A relay that stops as `services.relay.app.serve` does it."""
    async with run_relay(settings, open_sender=open_local_sender) as app, serve(app, address) as served:
        try:
            yield served
        finally:
            app.state.stop()


async def test_a_page_that_lost_its_relay_says_so_and_goes_on_with_the_next_one(
    chromium: Browser, tmp_path: Path, reserved_address: Address
) -> None:
    async with run_stand_ins() as stand_ins, lasting_page(chromium, [], [], reduced_motion=True) as page:
        settings, live = build_settings(tmp_path, stand_ins), page.locator("#live")
        async with running(settings, reserved_address) as address:
            await page.goto(f"http://{address}/")
            await expect(live).to_have_text("Live")
            await expect(page.locator(".panel.empty").first).to_contain_text("Nothing is open.")
            await page.evaluate("window.sameDocument = true")
        await expect(live).to_contain_text("Connection lost. What is shown is from ")
        await expect(page.locator("body.old")).to_have_count(1)
        await expect(live).to_be_in_viewport()
        assert await page.evaluate("getComputedStyle(document.querySelector('main')).filter") == "grayscale(1)"
        async with running(settings, address):
            await expect(live).to_have_text("Live")
            await expect(page.locator("body.old")).to_have_count(0)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            await record_reloads(page)
            async with aiohttp.ClientSession(f"http://{address}", headers=headers) as client:
                assert (await post(client, webhook_of(group="after")))[0] == 202
            await expect(page.locator(".open li")).to_have_count(1)
            await check_reloads(page)
            await page.context.set_offline(True)
            await expect(live).to_contain_text("Connection lost.")
            await page.context.set_offline(False)
            await expect(live).to_have_text("Live")
            assert await page.evaluate("window.sameDocument") is True


async def test_what_fails_is_named_with_what_to_do_and_no_alert_can_do_anything(
    chromium: Browser, tmp_path: Path
) -> None:
    async with open_console(tmp_path) as console:
        console.stand_ins.slack.channels.pop("#security-critical")
        webhook = json.loads(webhook_of(group=HOSTILE))
        webhook["alerts"][0]["annotations"]["title"] = HOSTILE
        webhook["alerts"][0]["labels"] |= {"severity": "critical", "alertname": HOSTILE}
        assert (await post(console.client, json.dumps(webhook).encode()))[0] == 202
        assert (await post(console.client, b"{"))[0] == 400
        async with open_page(chromium, f"{console.url}/") as page:
            slack = page.locator(".cards > .card").first
            await expect(slack).to_contain_text("Down: its destination does not exist, or")
            await expect(slack).to_contain_text("What to do:")
            await expect(page.locator(".verdict")).to_contain_text(
                re.compile("[0-9]+ incidents not acknowledged, 1 failing slack")
            )
            first = page.locator(".open li").first
            await expect(first.locator(".severity")).to_have_text("critical")
            await expect(first.locator("a")).to_have_text(HOSTILE)
            await expect(page.locator(".path > .card").nth(3)).to_contain_text("(400): it was no webhook")
            count = "document.getElementById('now_state').dataset.problems"
            await page.wait_for_function(f"() => document.title === `(${{{count}}}) keypulse relay`")
            assert (await page.locator("#icon").get_attribute("href")) == "/console/icon-problems.svg"
            assert await find_violations(page) == []
            await page.emulate_media(color_scheme="dark")
            assert await find_violations(page, COLOURS) == []

            links = set(await page.locator("#now_state a").evaluate_all("nodes => nodes.map((node) => node.href)"))
            assert len(links) > 6
            for link in sorted(links):
                async with console.client.get(link) as answer:
                    assert answer.status == 200, link

            # What a person has opened stays open while the page is loaded again, the focus stays, and a selection.
            state = page.locator("#now_state")
            await page.locator("#plot-table summary").click()
            await page.get_by_role("link", name="email").focus()
            await state.evaluate("node => node.dataset.old = 'yes'")
            await console.post(group="another")
            await expect(state).not_to_have_attribute("data-old", "yes")
            await expect(page.locator("#plot-table")).to_have_attribute("open", "")
            await expect(page.get_by_role("link", name="email")).to_be_focused()
            open_incidents = page.locator(".counts a").first
            number_before = await open_incidents.inner_text()
            await open_incidents.focus()
            await console.post(group="a further one")
            await expect(open_incidents).not_to_have_text(number_before)
            await expect(open_incidents).to_be_focused()  # although its number has changed
            await page.evaluate("getSelection().selectAllChildren(document.querySelector('.verdict'))")
            await state.evaluate("node => node.dataset.old = 'yes'")
            await console.post(group="one more")
            await page.wait_for_timeout(1500)
            await expect(state).to_have_attribute("data-old", "yes")
            await page.evaluate("getSelection().removeAllRanges()")
            await console.post(group="the last")
            await expect(state).not_to_have_attribute("data-old", "yes")
            await expect(page.locator("#plot-table tbody tr").first).to_contain_text("ms")


@pytest.mark.played
async def test_a_store_that_is_away_is_shown_and_what_was_known_is_old(chromium: Browser, tmp_path: Path) -> None:
    async with open_console(tmp_path) as console, open_page(chromium, f"{console.url}/") as page:
        await expect(page.locator(".open li")).to_have_count(1)
        (tmp_path / "relay.db").rename(tmp_path / "away.db")
        try:
            await expect(page.locator(".notice")).to_contain_text("The store cannot be read")
            await expect(page.locator(".path > .card").nth(4)).to_contain_text("Cannot be used")
            await expect(page.locator(".outdated .open li")).to_have_count(1)
            await expect(page.locator("#live")).to_have_text("Live")
            assert await find_violations(page) == []
            async with console.client.get("/") as answer:
                assert answer.status == 503
                assert "The store cannot be read" in await answer.text()
        finally:
            (tmp_path / "away.db").rename(tmp_path / "relay.db")
        await expect(page.locator(".notice")).to_have_count(0)
        await expect(page.locator(".path > .card").nth(4)).to_contain_text("Commits")


async def test_a_session_that_was_ended_ends_its_pages(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT_SECONDS", 2.0)
    (tmp_path / "viewer").write_text("a-token-of-a-viewer")
    auth = {
        "bearer_token_file": tmp_path / "token",
        "tokens": [{"name": "ada", "role": "viewer", "file": tmp_path / "viewer"}],
    }
    async with run_stand_ins() as stand_ins, lasting_page(chromium, [], [], reduced_motion=True) as page:
        settings, live = build_settings(tmp_path, stand_ins, auth=auth), page.locator("#live")
        async with running(settings, Address("127.0.0.1", 0)) as address:
            await page.goto(f"http://{address}/")
            await page.locator("input[name=secret]").fill("a-token-of-a-viewer")
            await page.locator("input[name=secret]").press("Enter")
            await expect(live).to_have_text("Live")
            await expect(page.locator(".caller")).to_contain_text("ada")
            with closing(sqlite3.connect(tmp_path / "relay.db")) as database, database:
                database.execute("DELETE FROM sessions")
            await expect(page.locator("input[name=secret]")).to_be_visible()  # the page led there by itself
