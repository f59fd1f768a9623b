"""The stand-ins' page: what arrives appears, nothing of it runs, buttons act, and everybody can read it."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.browser.accessibility import COLOURS, HOSTILE, IMAGE, SCRIPT, find_overflow, find_violations, nothing_ran
from tests.browser.lasting_page import lasting_page
from tests.browser.senders import CRITICAL, Senders
from tests.relay.acknowledgement.pressed_relay import build_settings, open_relay
from tests.relay.served_relay import until

pytestmark = [pytest.mark.played, pytest.mark.asyncio(loop_scope="session")]  # with the browser


async def test_what_arrives_appears_and_what_was_opened_stays_open(page: Page, senders: Senders) -> None:
    root = await senders.post("Down")
    await senders.post("Still down", thread_ts=root)
    await senders.mail("[prod] Down", "<head></head><h1>Firing</h1>")
    await senders.page("trigger")
    thread = page.locator("#slack li", has=page.locator(".message"))
    await thread.locator("summary").click()
    await page.locator("#mails summary").first.click()
    await senders.post("Over", thread_ts=root)
    await senders.mail("[prod] Over", "<head></head><h1>Resolved</h1>")
    await senders.page("resolve")
    await expect(thread.locator("details .message")).to_have_count(2)
    await expect(thread.locator("details .message").last).to_be_visible()
    await expect(page.frame_locator("iframe").last.get_by_role("heading")).to_have_text("Firing")
    await expect(page.locator(".incident .state")).to_have_text("resolved")
    await expect(page.locator("#mails li")).to_have_count(2)


async def test_the_buttons_break_and_heal_kms_and_providers(page: Page, senders: Senders) -> None:
    await page.get_by_label("What goes wrong at KMS").select_option("Key version disabled")
    await page.get_by_role("button", name="Break KMS").click()
    await expect(page.locator("#kms-now")).to_have_text("KMS is broken: Key version disabled")
    await page.get_by_role("button", name="Heal KMS").click()
    await expect(page.locator("#kms-now")).to_have_text("KMS works")
    async with senders.http.post("/api/faults", json={"provider": "slack", "kind": "hang", "count": 2}) as answer:
        assert answer.status == 201
    await expect(page.locator("#provider-faults")).to_contain_text("Broken: slack (hang, 2 left)")
    await page.get_by_role("button", name="Heal providers").click()
    await expect(page.locator("#provider-faults")).to_be_hidden()


async def test_a_button_of_a_message_reaches_the_relay(page: Page, senders: Senders, tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path, senders.stand_ins), senders.stand_ins) as relay:
        await relay.fire()
        await until(lambda: bool(senders.stand_ins.socket_mode.connections))
        message = page.locator("#slack .message").first
        await message.get_by_role("button", name="Acknowledge", exact=True).press("Enter")
        await expect(message).to_contain_text("Acknowledged by anna")  # edited in place
        assert await relay.list_actions() == [("anna", "acknowledge")]
    await page.get_by_role("button", name="Unacknowledge").click()
    await expect(page.locator("#slack .problem").first).to_have_text("The app did not respond. Try again.")


async def test_nothing_that_arrives_runs(page: Page, senders: Senders) -> None:
    for n, text in enumerate(HOSTILE):
        await senders.post(text[:140], body=text)
        await senders.slack.chat_postMessage(channel=CRITICAL, text=text)
        payload = {"source": text[:200], "custom_details": {"firing": text}}
        await senders.page("trigger", text[:1000], payload=payload, dedup_key=f"{n}{text}"[:255])
        await senders.change(text[:1000])
    await senders.mail(f"{SCRIPT}{IMAGE}", "<p>x</p>", f"{SCRIPT}{IMAGE}")
    await page.locator("#mails summary").click()
    await expect(page.locator("#mails pre")).to_have_text(re.compile(re.escape(SCRIPT)))
    await expect(page.locator("#slack .message")).to_have_count(2 * len(HOSTILE))
    await expect(page.locator(".incident")).to_have_count(len(HOSTILE))
    await expect(page.locator("#changes li")).to_have_count(len(HOSTILE))
    await nothing_ran(page)


@pytest.mark.parametrize("has_policy", [True, False])
async def test_a_mails_html_runs_no_script_and_leaves_its_frame_for_nobody(
    has_policy: bool, chromium: Browser, senders: Senders
) -> None:
    """Two fences: the mail's own Content-Security-Policy, and the sandbox of its frame."""
    html = (
        "<h1>shown</h1><script>document.querySelector('h1').textContent='hacked'</script>"
        "<img src=x onerror=\"document.querySelector('h1').textContent='hacked'\">"
        '<form action="/api/faults" method="post"><button>press</button></form>'
    )
    await senders.mail("hostile", html)

    async def without_its_policy(route: Route) -> None:
        await route.fulfill(body=await (await route.fetch()).body(), content_type="text/html")

    async with lasting_page(chromium, [], []) as page:  # this one may complain: the sandbox blocks what the mail tries
        if not has_policy:
            await page.route("**/mail/*", without_its_policy)
        await page.goto(f"http://{senders.stand_ins.http}/")
        await page.locator("#mails summary").click()
        frame = page.frame_locator("iframe")
        await frame.get_by_role("button", name="press").click()
        await expect(frame.get_by_role("heading")).to_have_text("shown")
        assert await frame.get_by_role("heading").evaluate("() => self.origin") == "null"
        assert senders.stand_ins.faults.get_state() == []


async def test_everybody_can_read_it(page: Page, senders: Senders) -> None:
    await senders.everything()
    await senders.post("x" * 140, body="y" * 500)
    await senders.page("trigger", "z" * 500, dedup_key="w" * 255)
    await expect(page.locator(".incident")).to_have_count(2)
    for width, scheme in ((390, "light"), (1280, "dark")):
        await page.set_viewport_size({"width": width, "height": 640})
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        assert not await find_overflow(page), width
        assert await find_violations(page, COLOURS) == [], scheme
    assert await find_violations(page, {"type": "tag", "values": ["wcag2a"]}) == []
