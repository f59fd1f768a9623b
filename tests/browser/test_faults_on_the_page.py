"""What is broken shows on the page of the stand-ins: KMS, a provider, the page's own connection."""

import pytest
from playwright.async_api import Browser, Page, expect

from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator import emulator
from ops.kms_emulator.faults import EmulatorFault
from tests.browser.lasting_page import lasting_page
from tests.browser.senders import Senders

TITLE = "🔴 Firing: KMSCryptoModeNotKMS"

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_the_buttons_break_and_heal_kms(page: Page, kms: emulator.Emulator) -> None:
    now = page.locator("#kms-now")
    await expect(now).to_have_text("KMS works")
    await page.get_by_label("What goes wrong at KMS").select_option("Key version disabled")
    await page.get_by_role("button", name="Break KMS").click()
    await expect(now).to_have_text("KMS is broken: Key version disabled")
    assert {fault.status for fault in kms.faults.list_active().values()} == {"FAILED_PRECONDITION"}
    await page.get_by_role("button", name="Heal KMS").click()
    await expect(now).to_have_text("KMS works")
    assert kms.faults.list_active() == {}


async def test_what_somebody_else_broke_is_shown(page: Page, kms: emulator.Emulator) -> None:
    kms.faults.add(EmulatorFault(kind="wrong_plaintext"))
    await expect(page.locator("#kms-now")).to_have_text("KMS is broken: several faults")


async def test_a_fault_of_a_provider_is_shown_and_healed(page: Page, senders: Senders) -> None:
    async with senders.http.post("/api/faults", json={"provider": "smtp", "kind": "status", "count": 3}) as answer:
        assert answer.status == 201
    await expect(page.locator("#provider-faults-text")).to_have_text("Broken: smtp (status, 3 left)")
    await page.get_by_role("button", name="Heal providers").click()
    await expect(page.locator("#provider-faults")).to_be_hidden()
    assert senders.stand_ins.faults.get_state() == []


async def test_the_page_comes_back_when_the_connection_does(chromium: Browser, senders: Senders) -> None:
    async with lasting_page(chromium, [], []) as page:  # this one may complain: it is cut off
        await page.goto(f"http://{senders.stand_ins.http}/")
        await expect(page.locator("#live")).to_have_text("Live")
        await page.context.set_offline(True)
        await senders.post(TITLE)
        await page.context.set_offline(False)
        await expect(page.locator(".message .b-header")).to_have_text("Firing: KMSCryptoModeNotKMS")
        await expect(page.locator("#live")).to_have_text("Live")


async def test_a_state_that_could_not_be_read_is_requested_again(chromium: Browser, senders: Senders) -> None:
    async with lasting_page(chromium, [], []) as page:  # this one may complain: its request is cut
        await page.goto(f"http://{senders.stand_ins.http}/")
        await page.locator("body.settled").wait_for()
        await page.route("**/api/state", lambda route: route.abort())
        await senders.post(TITLE)
        await expect(page.locator("#live")).to_have_text("Reconnecting")
        await page.unroute("**/api/state")  # nothing arrives from here on: the page asks by itself
        await expect(page.locator(".message .b-header")).to_have_text("Firing: KMSCryptoModeNotKMS")
        await expect(page.locator("#live")).to_have_text("Live")


async def test_an_absent_emulator_is_reported_in_one_sentence(chromium: Browser) -> None:
    async with run_stand_ins() as stand_ins, lasting_page(chromium, [], []) as page:
        await page.goto(f"http://{stand_ins.http}/")
        await expect(page.locator("#kms-problem")).to_contain_text("no KMS emulator is connected")
        await expect(page.locator("#kms-now")).to_have_text("KMS unknown")
        await page.get_by_role("button", name="Break KMS").click()
        await expect(page.locator("#kms-problem")).to_contain_text("start the stand-ins with --emulator-faults URL")
