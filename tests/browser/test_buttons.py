"""A person presses the buttons of a message on the stand-in's page, and a real relay acts."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.senders import CRITICAL, Senders
from tests.relay.interactive.pressed_relay import ANNA, build_settings, open_relay
from tests.relay.served_relay import until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

NO_APP = "⚠ The app did not respond. Try again."


async def test_buttons_of_a_message_acknowledge_and_silence(page: Page, senders: Senders, tmp_path: Path) -> None:
    silence: dict[str, Any] = {"allow_users": [ANNA]}
    keys: dict[str, Any] = {"interactive": {"silence": silence}, "alertmanager": {"urls": ["http://127.0.0.1:9"]}}
    async with open_relay(build_settings(tmp_path, senders.stand_ins, **keys), senders.stand_ins) as relay:
        await relay.fire()
        await until(lambda: bool(senders.stand_ins.socket_mode.connections))
        message = page.locator(".message").first
        await message.get_by_role("button", name="Acknowledge", exact=True).click()
        await expect(message).to_contain_text("Acknowledged by anna")  # edited in place
        await expect(message.locator(".b-warning")).to_be_empty()
        await page.get_by_label("Press buttons as").select_option("Gil Guest")
        await message.get_by_role("button", name="Silence").click()
        await page.get_by_role("dialog").get_by_role("button", name="Silence").click()
        refusal = page.locator(".message").filter(has_text="Guests cannot silence.")
        await expect(refusal).to_contain_text("Only visible to Gil Guest")
        await message.get_by_role("button", name="Unacknowledge").click()
        await expect(message.get_by_role("button", name="Acknowledge", exact=True)).to_be_visible()
        assert await relay.list_actions() == [
            ("anna", "acknowledge"),
            ("gil", "silence refused"),
            ("gil", "unacknowledge"),
        ]
        await relay.resolve()
        await expect(message.get_by_role("button")).to_have_count(0)
        await expect(page.get_by_text("1 reply", exact=True)).to_be_visible()


async def test_slack_warns_where_no_app_answers_and_asks_before_a_press_that_wants_it(
    page: Page, senders: Senders
) -> None:
    text = {"type": "plain_text", "text": "Silence"}
    confirm = {key: {"type": "plain_text", "text": key.title()} for key in ("title", "text", "confirm", "deny")}
    button = {"type": "button", "action_id": "silence", "value": "1", "text": text, "confirm": confirm}
    await senders.post("Down", blocks=[{"type": "actions", "elements": [button]}])
    message, mode = page.locator(".message"), senders.stand_ins.socket_mode
    await message.get_by_role("button", name="Silence").click()
    await page.get_by_role("dialog").get_by_role("button", name="Deny").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert mode.presses == []
    await message.get_by_role("button", name="Silence").click()
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    await expect(message.locator(".b-warning")).to_have_text(NO_APP)
    assert [press["actions"][0]["action_id"] for press in mode.presses] == ["silence"]


async def test_attachments_files_and_what_people_change_are_shown(page: Page, senders: Senders) -> None:
    slack, channel = senders.slack, senders.stand_ins.slack.channels[CRITICAL]
    attachment = {"color": "#d92d20", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "*down*"}}]}
    root = await senders.post("Down", attachments=[attachment])
    colour = page.locator(".b-attachment").evaluate("node => node.style.borderColor")
    await expect(page.locator(".b-attachment b")).to_have_text("down")
    assert await colour == "rgb(217, 45, 32)"
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fcffff3f030005fe02fea1"
        "39a0b90000000049454e44ae426082"
    )
    await slack.files_upload_v2(content=pixel, filename="chart.png", channel=channel.id, thread_ts=root)
    await slack.files_upload_v2(content="all", filename="alerts.txt", channel=channel.id, thread_ts=root)
    await page.get_by_text("2 replies", exact=True).click()
    picture = page.locator(".replies img.b-file")
    await expect(picture).to_be_visible()
    assert await picture.evaluate("node => node.decode().then(() => node.naturalWidth)") == 1
    await expect(page.get_by_role("link", name="alerts.txt")).to_be_visible()
    senders.stand_ins.slack.delete_message(channel, channel.messages[0])
    senders.stand_ins.slack.archive(channel)
    await expect(page.locator(".message.deleted")).to_contain_text("This message was deleted.")
    await expect(page.get_by_role("button", name=f"{CRITICAL} (archived)")).to_be_visible()
