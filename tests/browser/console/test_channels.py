"""The pages of the channels, and of a payload that is rendered for all of them."""

import pytest
from playwright.async_api import Browser, expect

from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from tests.browser.accessibility import check_accessibility, find_overflow, find_violations
from tests.browser.console.channel_scene import ROUTES, build_channels, seed_checks
from tests.browser.console.served_console import Console, open_console, open_page
from tests.relay.served_relay import payload

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser


async def test_a_responder_finds_what_is_wrong_with_a_channel_checks_it_and_sends_a_test(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("channels")
    await seed_checks(folder)
    async with (
        open_console(folder, channels=build_channels(folder), routes=ROUTES, pacing={"enabled": False}) as console,
        open_page(chromium, f"{console.url}/channels") as page,
    ):
        cards = page.locator("#channels > li")
        await expect(cards).to_have_count(6)
        slack = cards.filter(has=page.get_by_role("link", name="slack", exact=True))
        await expect(slack.locator(".strip li")).to_have_count(28)
        await expect(slack.locator(".strip .failing")).to_have_count(2)
        await expect(slack.locator(".state")).to_have_text("Up.")
        await expect(cards.filter(has_text="4 limitations")).to_have_count(1)
        await check_accessibility(page)

        success = page.locator("#last-success-slack")
        before = await success.get_attribute("href")
        assert before is not None
        await success.focus()
        await console.post(group="delivered")
        await expect(success).not_to_have_attribute("href", before)
        await expect(success).to_be_focused()  # although it leads to a newer delivery

        # It breaks while the page is open, and says why.
        console.stand_ins.faults.add(
            ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error="token_revoked")
        )
        await page.locator("#test-slack").focus()
        await console.post(group="revoked")
        await expect(slack.locator(".state")).to_contain_text("Down: its credentials are refused.")
        await expect(slack).to_contain_text("Put the current secret into its file.")
        await expect(slack).to_contain_text("token_revoked")
        await expect(page.locator("#test-slack")).to_be_focused()  # although its card was loaded again
        console.stand_ins.faults.clear()
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{console.url}/channels/slack")
        await expect(page.locator(".flash")).to_have_text("slack: test message sent")
        test = page.locator("section", has=page.get_by_role("heading", name="Last test"))
        await expect(test).to_contain_text("Sent")
        await expect(test).to_contain_text("chat.postMessage")
        await expect(page.locator("#channel_state .state").first).to_have_text("Up.")
        await page.get_by_role("button", name="Check slack").click()
        await expect(page.locator(".flash")).to_have_text("slack: checked: nothing is wrong")
        await expect(page.locator("#check_history tbody tr").first).to_contain_text("anonymous")
        passed = await page.locator(".steps .passed").all_inner_texts()
        assert passed
        assert not [each for each in passed if "\n" in each]  # the name of a step and what it found are one sentence
        await page.get_by_role("button", name="Send a test to slack").click()
        await expect(page.locator(".flash")).to_contain_text("Nothing was done on slack: there was a test just now")
        await expect(page.get_by_role("link", name="routes.1")).to_have_attribute("href", "/routes#route-1")
        await check_accessibility(page)
        await page.goto(f"{console.url}/channels/email")
        await expect(page.locator("#check_history")).to_contain_text("554 <img src=x onerror=alert(1)>")
        assert await page.locator("main img, main script").count() == 0
        await page.goto(f"{console.url}/channels/ticketing")
        await expect(page.locator("table")).to_contain_text("http://127.0.0.1:1/[secret]")


async def test_a_payload_is_shown_side_by_side_and_corrected_there(chromium: Browser, console: Console) -> None:
    async with open_page(chromium, f"{console.url}/channels") as page:
        await page.get_by_role("link", name="Render a payload").click()
        await page.locator("#live.on").wait_for()
        await expect(page.locator(".renderings > section")).to_have_count(3)
        frame = page.frame_locator("iframe[name=mail-email]")
        await expect(frame.locator("body")).to_contain_text("cannot encrypt with ledger-kek")
        await check_accessibility(page)

        await page.get_by_text("As text").click()
        assert not await find_overflow(page)

        await page.locator("#payload").fill('{"version": "4", "receiver": 7}')
        await page.get_by_role("button", name="Render", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("receiver")
        await expect(page.locator("#payload")).to_have_value('{"version": "4", "receiver": 7}')
        assert await find_violations(page) == []
        await page.locator("section", has_text="Accepted last").get_by_role("link").last.click()
        await expect(page.locator(".renderings > section")).to_have_count(3)
        await expect(page.locator("#payload")).to_have_value(payload(1).decode())
