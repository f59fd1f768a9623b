"""A wrong clock, of the person's machine or of the exporter's, tells no wrong age and breaks nothing."""

import re
from datetime import UTC, datetime

import pytest
from playwright.async_api import Browser, expect

from services.exporter.history import History
from services.exporter.model import Call, Operation, ProbeResult, TargetKey
from tests.browser.lasting_page import lasting_page
from tests.browser.scenes import NOW, failing
from tests.browser.served_board import serve_board
from tests.browser.test_board_live import focus

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

AGES = ".facts time, .since [data-for]"


@pytest.mark.parametrize("year", [2001, 2126])
async def test_ages_are_by_the_servers_clock(chromium: Browser, year: int) -> None:
    page = await chromium.new_page()  # this one may complain: its connection ends
    await page.clock.install(time=datetime(year, 1, 1, tzinfo=UTC))
    async with serve_board(failing(), clock=lambda: NOW) as address:
        await page.goto(f"http://{address}/")
        await expect(page.get_by_role("status")).to_have_text("Live")
        vault = page.get_by_role("article", name="vault-kek")
        await expect(vault.get_by_text("4 min ago")).to_have_count(1)
        assert await page.evaluate("new Date().getUTCFullYear()") == year
        ages = " ".join(await page.locator(AGES).all_text_contents())
        assert {int(days) for days in re.findall(r"(\d+) days", ages)} == {3, 41}
    await page.clock.run_for(2000)
    await expect(page.get_by_role("status")).to_contain_text(re.compile("What is shown is from 09:(29:5|30:0)"))
    await page.close()


async def test_the_servers_clock_counts_before_the_first_answer_too(chromium: Browser) -> None:
    page = await chromium.new_page()  # this one may complain: it is refused
    await page.clock.install(time=datetime(2001, 1, 1, 15, 45, tzinfo=UTC))
    await page.route("**/api/board?*", lambda route: route.fulfill(status=503))
    async with serve_board(failing(), clock=lambda: NOW) as address:
        await page.goto(f"http://{address}/")
        await expect(page.get_by_role("status")).to_contain_text(
            re.compile("503. What is shown is from 09:(29:5|30:0)")
        )
    await page.close()


async def test_a_servers_clock_that_jumps_back_is_followed(chromium: Browser) -> None:
    now = [NOW]
    errors: list[str] = []
    async with serve_board(failing(), clock=lambda: now[0]) as address, lasting_page(chromium, errors, []) as page:
        await page.goto(f"http://{address}/")
        vault = page.get_by_role("article", name="vault-kek")
        await expect(vault.get_by_text("4 min ago")).to_have_count(1)
        now[0] = NOW - 7200
        await focus(page)
        await expect(vault.get_by_text("in 1 h")).not_to_have_count(0)
        await expect(page.get_by_role("status")).to_have_text("Live")
        now[0] = NOW + 600
        await focus(page)
        await expect(vault.get_by_text("no recent result")).to_have_count(1)
        await expect(vault.get_by_text("14 min ago")).to_have_count(1)
    assert errors == []


async def test_the_script_formats_an_age_as_the_server_does(chromium: Browser) -> None:
    history = History()
    ages = (70, 3590, 3610, 7190, 86_000, 172_000, 173_000, 1e8)
    history.configure(dict.fromkeys([("ledger", f"key-{age:.0f}") for age in ages], TargetKey()), [])
    for age in ages:
        history.add_probe(ProbeResult("ledger", f"key-{age:.0f}", NOW - age, (Call(Operation.ENCRYPT, 0.1),), None))
    async with serve_board(history, clock=lambda: NOW) as address, lasting_page(chromium, [], []) as page:
        await page.route("**/*.js", lambda route: route.abort())
        await page.goto(f"http://{address}/")
        await expect(page.locator("#live.on")).to_have_count(0)
        server_ages = await page.locator(AGES).all_text_contents()
        await page.unroute_all()
        await page.reload()
        await page.locator("#live.on").wait_for()
        script_ages = await page.locator(AGES).all_text_contents()
    assert len(server_ages) == 2 * len(ages)
    assert script_ages == server_ages
