"""The link in a mail: what it lets its reader do, and everything that it does not."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from structlog.testing import capture_logs

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from services.relay.config import RelaySettings
from services.relay.model import build_incident_id
from tests.relay.console.test_api import Clock
from tests.relay.login.served_login import (
    BASE,
    Relay,
    build_settings,
    find_csrf_token,
    open_relay,
    read_audit,
    token,
)
from tests.relay.served_relay import event_of, until, webhook_of

ID = build_incident_id(event_of())
TO = ["oncall@example.org", "secops@example.org"]
SENDER = {"authorization": f"Bearer {token('sender')}"}
ROUTE = "/acknowledge/{id}"


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with run_stand_ins() as stand_ins:
        yield stand_ins


def mailing(folder: Path, stand_ins: StandIns, *, to: list[str] = TO, **auth: Any) -> RelaySettings:
    mail = {
        "kind": "email",
        "host": "127.0.0.1",
        "port": stand_ins.smtp.port,
        "tls": "none",
        "from": "relay@example.org",
    }
    document = build_settings(folder, public_url=BASE, **auth).model_dump(by_alias=True, exclude_unset=True)
    document |= {"channels": {"mail": {**mail, "to": to}}, "default_channels": ["mail"], "environment": "demo"}
    return RelaySettings(**document)


async def post_alert(browser: httpx2.AsyncClient, status: str = "firing") -> None:
    assert (await browser.post("/alerts", content=webhook_of(status), headers=SENDER)).status_code == 202


async def read_link(stand_ins: StandIns, number: int = 1) -> str:
    """The path of the link in a mail."""
    await until(lambda: len(stand_ins.mailbox.mails) >= number)
    mail = stand_ins.mailbox.mails[number - 1]
    (link,) = re.findall(rf"^Acknowledge: {BASE}(/acknowledge/\S+)\s*$", mail.text, re.MULTILINE)
    assert f"{BASE}{link}".replace("&", "&amp;") in mail.html
    return str(link)


async def press(browser: httpx2.AsyncClient, link: str) -> httpx2.Response:
    """Opens the link, and presses the button on its page."""
    page = await browser.get(link)
    assert page.status_code == 200, page.text
    (action,) = re.findall('<form method="post" action="([^"]+)"', page.text)
    return await browser.post(action.replace("&amp;", "&"), data={"csrf_token": find_csrf_token(page)})


async def read_incident(browser: httpx2.AsyncClient) -> dict[str, Any]:
    answer = await browser.get(f"/api/incidents/{ID}", headers={"authorization": f"Bearer {token('dora')}"})
    return dict(answer.json())


@asynccontextmanager
async def mailed(
    folder: Path, stand_ins: StandIns, **options: Any
) -> AsyncIterator[tuple[Relay, httpx2.AsyncClient, str]]:
    """A relay that has mailed of an incident, a browser of a reader, and the link in the mail."""
    async with open_relay(mailing(folder, stand_ins), folder, **options) as relay, relay.open_browser() as browser:
        await post_alert(browser)
        yield relay, browser, await read_link(stand_ins)


async def test_a_reader_acknowledges_by_the_button_and_a_scanner_that_follows_the_link_does_not(
    tmp_path: Path, stand_ins: StandIns
) -> None:
    async with mailed(tmp_path, stand_ins) as (relay, browser, link):
        for method in ("GET", "HEAD", "GET"):
            assert (await browser.request(method, link)).status_code == 200
        assert (await read_incident(browser))["acknowledged_by"] is None
        pressed = await press(browser, link)
        assert (pressed.status_code, pressed.headers["location"]) == (303, link)
        who = "mail link to oncall@example.org, secops@example.org"
        assert (await read_incident(browser))["acknowledged_by"] == who
        assert (who, "192.0.2.1", "acknowledge", ID) in await read_audit(relay)
        after = await browser.get(link)
        assert (f"acknowledged by {who}" in after.text, "<form" in after.text) == (True, False)
        metrics = await browser.get("/metrics", auth=("anna", "a-password-of-somebody"))
        assert 'relay_acknowledgements_total{via="mail"} 1.0' in metrics.text
        # What is sent once it is acknowledged offers no button.
        await post_alert(browser, "resolved")
        await until(lambda: len(stand_ins.mailbox.mails) == 2)
        assert "Acknowledge:" not in stand_ins.mailbox.mails[1].text


async def test_a_link_is_of_one_episode(tmp_path: Path, stand_ins: StandIns) -> None:
    async with mailed(tmp_path, stand_ins) as (_, browser, link):
        page = await browser.get(link)
        await post_alert(browser, "resolved")
        await until(lambda: len(stand_ins.mailbox.mails) == 2)
        over = await browser.get(link)
        assert (over.status_code, "is over" in over.text) == (410, True)
        await post_alert(browser)
        await until(lambda: len(stand_ins.mailbox.mails) == 3)
        late = await browser.post(link, data={"csrf_token": find_csrf_token(page)})
        assert (late.status_code, "is over" in late.text) == (410, True)
        assert (await read_incident(browser))["acknowledged_by"] is None
        assert (await press(browser, await read_link(stand_ins, 3))).status_code == 303


async def test_no_other_link_is_valid_and_each_attempt_is_counted(tmp_path: Path, stand_ins: StandIns) -> None:
    async with mailed(tmp_path, stand_ins) as (relay, browser, link):
        path, query = urlsplit(link).path, dict(parse_qsl(urlsplit(link).query))
        csrf_token = find_csrf_token(await browser.get(link))
        changed: list[dict[str, str]] = [
            {**query, "episode": "2"},
            {**query, "expires": str(int(query["expires"]) + 1)},
            {**query, "channel": "one"},
            {**query, "signature": query["signature"][::-1]},
            {**query, "signature": "A" * 43},
            {**query, "signature": ""},
            {**query, "episode": "9" * 40, "expires": "x"},
            {},
        ]
        links = [f"{path}?{urlencode(each)}" for each in changed]
        links += [link.replace(ID, build_incident_id(event_of(group="two"))), link.replace(ID, "%00")]
        for each in links:
            assert (await browser.get(each)).status_code == 403, each
            assert (await browser.post(each, data={"csrf_token": csrf_token})).status_code == 403, each
        assert relay.count_refused(ROUTE, "wrong") == 2 * len(links)
        assert (await read_incident(browser))["acknowledged_by"] is None
        # It is no credential for anything else.
        for elsewhere in (f"/incidents/{ID}", f"/api/incidents/{ID}", "/"):
            answer = await browser.get(f"{elsewhere}?{urlsplit(link).query}", headers={"accept": "*/*"})
            assert answer.status_code == 401
        foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        for headers, form in ((foreign, {"csrf_token": csrf_token}), ({}, {})):
            assert (await browser.post(link, data=form, headers=headers)).status_code == 403
        assert (await read_incident(browser))["acknowledged_by"] is None


async def test_a_link_expires_and_ends_with_its_recipients_and_with_its_key(
    tmp_path: Path, stand_ins: StandIns
) -> None:
    clock = Clock()
    async with mailed(tmp_path, stand_ins, clock=clock) as (relay, browser, link):
        clock.now += 2 * 86_400 - 60
        assert (await browser.get(link)).status_code == 200
        clock.now += 120
        expired = await browser.get(link)
        assert (expired.status_code, "has expired" in expired.text) == (410, True)
        assert relay.count_refused(ROUTE, "wrong") == 0, "it was a good one"
        clock.now -= 120
        sender = tmp_path / "sender"
        sender.write_text(f"a-new-token-of-the-sender\n{token('sender')}")
        assert (await browser.get(link)).status_code == 200, "the old token is valid while it is rotated"
        sender.unlink()
        assert (await browser.get(link)).status_code == 503
        sender.write_text("a-new-token-of-the-sender")
        assert (await browser.get(link)).status_code == 403
    for settings, status in ((mailing(tmp_path, stand_ins), 200), (mailing(tmp_path, stand_ins, to=TO[:1]), 403)):
        async with open_relay(settings, tmp_path, clock=clock) as other, other.open_browser() as browser:
            assert (await browser.get(link)).status_code == status, "another replica, or other recipients"


async def test_what_is_stored_and_logged_of_a_mail_has_no_secret(tmp_path: Path, stand_ins: StandIns) -> None:
    with capture_logs() as logs:
        async with mailed(tmp_path, stand_ins) as (_, browser, link):
            headers = {"authorization": f"Bearer {token('dora')}"}

            async def read_delivery() -> dict[str, Any]:
                listed = (await browser.get("/api/deliveries", headers=headers)).json()["deliveries"]
                return dict((await browser.get(f"/api/deliveries/{listed[0]['id']}", headers=headers)).json())

            async def is_delivered() -> bool:
                return bool((await read_delivery())["state"] == "delivered")

            await until(is_delivered)
            await press(browser, link)
            payload = str(await read_delivery()).replace("=\\r\\n", "")
    secret = dict(parse_qsl(urlsplit(link).query))["signature"]
    assert payload.count("signature=3D[secret]") == 2, "in the text and in the HTML"
    assert secret not in payload
    actions = [each for each in logs if each["event"] == "action"]
    assert [each["who"] for each in actions] == ["mail link to oncall@example.org, secops@example.org"]
    assert secret not in str(logs)
