"""The page of the stand-ins as a person uses it, in Chromium."""

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from ops.demo.stand_ins.slack.workspace import MAX_STORED, SlackMessage
from tests.browser.senders import CRITICAL, RUNBOOK, Senders

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

TITLE = "🔴 Firing: KMSCryptoModeNotKMS"


async def test_a_slack_message_appears_with_its_blocks(page: Page, senders: Senders) -> None:
    await senders.post(
        TITLE, body="<!channel> *ledger* uses `local.key` &amp; no KMS\n&gt; see <https://example.org|here>"
    )
    message = page.locator(".message")
    await expect(message.locator(".b-header")).to_have_text("Firing: KMSCryptoModeNotKMS")
    await expect(message.get_by_role("img", name="red")).to_be_visible()
    await expect(message.locator(".mention")).to_have_text("@channel")
    await expect(message.locator("code").first).to_have_text("local.key")
    await expect(message.locator(".b-text")).to_contain_text("& no KMS")
    await expect(message.locator("blockquote a")).to_have_attribute("href", "https://example.org/")
    await expect(message.locator(".b-fields > div")).to_have_text(["envprod", "serviceledger", "severitycritical"])
    await expect(message.get_by_role("link", name="Runbook")).to_have_attribute("href", RUNBOOK)
    await expect(message.locator("hr")).to_have_count(1)
    await expect(message.locator(".b-context")).to_have_text("receiver kms-critical")
    await expect(page.locator("#arrivals")).to_have_text(f"Slack, #security-critical: {TITLE}")


async def test_a_message_without_blocks_shows_its_text(page: Page, senders: Senders) -> None:
    await senders.slack.chat_postMessage(
        channel="#security-critical", text="_slow_ ~not~ :warning: ```a\n&gt; b``` snake_case_name 2*3*4"
    )
    text = page.locator(".message .b-text")
    await expect(text.locator("i")).to_have_text("slow")
    await expect(text.locator("s")).to_have_text("not")
    await expect(text.locator("pre")).to_have_text("a\n> b")
    await expect(text).to_contain_text("snake_case_name 2*3*4")


async def test_a_name_of_an_emoji_in_plain_text_is_one_unless_emoji_is_false(page: Page, senders: Senders) -> None:
    for emoji in (True, False):
        text = {"type": "plain_text", "text": "10:lock:00", "emoji": emoji}
        button = {"type": "button", "text": text, "url": RUNBOOK}
        blocks: list[dict[str, Any]] = [{"type": "header", "text": text}, {"type": "actions", "elements": [button]}]
        await senders.slack.chat_postMessage(channel=CRITICAL, text="x", blocks=blocks)
    await expect(page.locator(".b-header")).to_have_text(["10🔒00", "10:lock:00"])
    await expect(page.locator(".message .button")).to_have_text(["10🔒00", "10:lock:00"])
    await expect(page.locator("#arrivals")).to_have_text(re.compile("10:lock:00$"))


async def test_replies_are_closed_under_their_root_and_a_broadcast_is_in_the_channel_too(
    page: Page, senders: Senders
) -> None:
    root = await senders.post(TITLE)
    await expect(page.locator(".thread")).to_have_count(1)
    await senders.post("Resolved quietly", thread_ts=root)
    await expect(page.get_by_text("1 reply", exact=True)).to_be_visible()
    await senders.post("Resolved for all", thread_ts=root, reply_broadcast=True)
    await expect(page.get_by_text("2 replies", exact=True)).to_be_visible()
    await expect(page.locator(".thread")).to_have_count(2)
    await expect(page.locator(".thread").last).to_contain_text("replied to a thread")
    await expect(page.locator(".replies").get_by_text("Resolved quietly")).to_be_hidden()
    await expect(page.locator(".b-header").filter(visible=True)).to_have_text(
        ["Firing: KMSCryptoModeNotKMS", "Resolved for all"]
    )


async def test_a_thread_that_was_opened_by_keyboard_stays_open_while_it_grows(page: Page, senders: Senders) -> None:
    root = await senders.post(TITLE)
    await senders.post("Resolved quietly", thread_ts=root)
    await page.get_by_text("1 reply", exact=True).focus()
    await page.keyboard.press("Enter")
    await expect(page.locator(".replies").get_by_text("Resolved quietly")).to_be_visible()
    await senders.post("Firing again", thread_ts=root)
    await expect(page.locator(".replies .b-header").filter(visible=True)).to_have_text(
        ["Resolved quietly", "Firing again"]
    )
    await expect(page.get_by_text("2 replies", exact=True)).to_be_focused()


async def test_an_edit_changes_the_message_itself(page: Page, senders: Senders) -> None:
    ts = await senders.post(TITLE)
    await expect(page.locator(".message")).to_have_count(1)
    channel = senders.stand_ins.slack.channels["#security-critical"].id
    await senders.slack.chat_update(channel=channel, ts=ts, text="all is well")
    await expect(page.locator(".message")).to_contain_text("all is well")
    await expect(page.locator(".message")).to_contain_text("(edited)")


async def test_a_channel_that_is_not_shown_counts_what_is_new(page: Page, senders: Senders) -> None:
    await senders.post(TITLE)
    await senders.post("Slow", channel="#security-ops")
    other = page.get_by_role("button", name="#security-ops")
    await expect(other).to_contain_text("1 new")
    await other.click()
    await expect(page.locator(".message .b-header")).to_have_text("Slow")
    await expect(other).to_have_attribute("aria-pressed", "true")
    await expect(other).not_to_contain_text("new")


async def test_a_channel_that_is_full_still_counts_what_is_new(page: Page, senders: Senders) -> None:
    for number in range(MAX_STORED):
        text, ts = f"message {number}", f"{1_700_000_000 + number}.000000"
        senders.stand_ins.slack.channels["#security-ops"].messages.append(
            SlackMessage(ts, 1_700_000_000 + number, text, [], None, reply_broadcast=False, metadata=None)
        )
    await senders.post(TITLE)
    other = page.get_by_role("button", name="#security-ops")
    await expect(other).to_contain_text(f"{MAX_STORED} new")
    await other.click()
    await expect(other).not_to_contain_text("new")
    await page.get_by_role("button", name=CRITICAL).click()
    await senders.post("Slow", channel="#security-ops")
    await expect(other).to_contain_text("1 new")


async def test_a_mail_opens_as_html_and_as_text_and_stays_open_when_another_comes(page: Page, senders: Senders) -> None:
    await senders.mail("[prod] first", "<h1>Firing</h1><a href='https://example.org/runbook'>Runbook</a>", "as text")
    await page.get_by_role("button", name="[prod] first").click()
    frame = page.frame_locator("iframe[title='Mail: [prod] first']")
    await expect(frame.get_by_role("heading")).to_have_text("Firing")
    await senders.mail("[prod] second", "<p>x</p>")
    await expect(page.locator(".mail-item")).to_have_count(2)
    await expect(page.locator(".mail-item").first).to_contain_text("[prod] second")
    await expect(frame.get_by_role("heading")).to_be_visible()
    await page.get_by_role("button", name="Plain text").click()
    await expect(page.locator(".mail-text")).to_have_text(re.compile("as text"))
    await expect(page.locator("iframe")).to_be_hidden()
    await page.get_by_text("Headers", exact=True).click()
    await expect(page.get_by_role("row", name="Message-ID")).to_contain_text("<1@example.org>")


async def test_a_mail_with_a_doctype_is_laid_out_by_the_standard(page: Page, senders: Senders) -> None:
    html = (
        '\n<!doctype html>\n<html lang="en"><head><title>t</title></head><body><a href="/x">Runbook</a></body></html>'
    )
    await senders.mail("first", html)
    await page.locator(".mail-open").click()
    link = page.frame_locator("iframe").get_by_role("link", name="Runbook")
    await expect(link).to_be_visible()
    found = "node => [document.compatMode, document.documentElement.lang, document.querySelector('base').target]"
    assert await link.evaluate(found) == ["CSS1Compat", "en", "_blank"]


async def test_mails_of_one_subject_distinguish_the_alarm_from_the_all_clear(page: Page, senders: Senders) -> None:
    await senders.mail("[KMSDown] prod", "<h1>x</h1>", "Firing: KMSDown · prod\n1 firing")
    await senders.mail("[KMSDown] prod", "<h1>x</h1>", "Resolved: KMSDown · prod\n1 resolved")
    lines = page.locator(".mail-snippet")
    await expect(lines).to_have_text(["Resolved: KMSDown · prod", "Firing: KMSDown · prod"])
    colours = await lines.evaluate_all("nodes => nodes.map((n) => getComputedStyle(n, '::before').backgroundColor)")
    assert len(set(colours)) == 2
    await expect(page.locator("#arrivals")).to_have_text(
        re.compile(r"Mail: \[KMSDown\] prod: Resolved: KMSDown · prod$")
    )


async def test_an_incident_opens_and_resolves_before_ones_eyes(page: Page, senders: Senders) -> None:
    await senders.page("trigger")
    incident = page.locator(".incident")
    await expect(incident.locator(".pill")).to_have_text("Triggered")
    await expect(incident.locator("h3")).to_have_text("ledger runs without KMS")
    await expect(incident.get_by_role("link", name="Runbook")).to_have_attribute("href", RUNBOOK)
    await expect(page).to_have_title("(1) keypulse on call")
    await senders.page("trigger", "still without KMS")
    await senders.page("acknowledge")
    await expect(incident.locator(".pill")).to_have_text("Acknowledged")
    await senders.page("resolve")
    await expect(incident.locator(".pill")).to_have_text("Resolved")
    lines = incident.locator(".log li")
    await expect(lines).to_have_text(
        [
            re.compile("Triggered$"),
            re.compile("Triggeredstill without KMS$"),
            re.compile("Acknowledged$"),
            re.compile("Resolved$"),
        ]
    )
    await expect(page.locator("#pagerduty-count")).to_have_text("0 open")
    await expect(page).to_have_title("keypulse on call")
    await expect(page.locator("#arrivals")).to_have_text("PagerDuty, resolved: ledger runs without KMS")
    await senders.page("trigger")
    await expect(incident).to_have_count(2)


async def test_an_incident_links_to_its_client_and_shows_its_details_as_a_table(page: Page, senders: Senders) -> None:
    alert = {"summary": "no KMS", "labels": {"env": "prod", "zone": "b"}}
    details = {"alerts": "1 firing", "listed": [alert]}
    client = {"client": "keypulse", "client_url": "https://alertmanager.example.org/#/alerts"}
    await senders.page("trigger", payload={"custom_details": details}, **client)
    incident = page.locator(".incident")
    view = incident.get_by_role("link", name="View in keypulse")
    await expect(view).to_have_attribute("href", client["client_url"])
    await incident.get_by_text("Details", exact=True).click()
    for key, value in {"alerts": "1 firing", "summary": "no KMS", "env": "prod", "zone": "b"}.items():
        cell = incident.get_by_role("rowheader", name=key, exact=True).locator("xpath=following-sibling::td")
        await expect(cell).to_have_text(value)


async def test_a_reader_who_scrolled_up_stays_there_and_one_at_the_end_follows(page: Page, senders: Senders) -> None:
    for number in range(6):
        await senders.post(f"message {number}")
    await expect(page.locator(".message")).to_have_count(6)
    scroll = page.locator("#slack-scroll")
    at_end = "node => node.scrollHeight - node.scrollTop - node.clientHeight < 2"
    assert await scroll.evaluate(at_end)
    await senders.post("message 6")
    await expect(page.locator(".message")).to_have_count(7)
    assert await scroll.evaluate(at_end)
    await scroll.evaluate("node => { node.scrollTop = 40 }")
    await senders.post("message 7")
    await expect(page.locator(".message")).to_have_count(8)
    assert await scroll.evaluate("node => node.scrollTop") == 40
