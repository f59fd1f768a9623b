"""Whatever arrives, nothing of it runs: the page shows it as text, or in a sandbox."""

import re

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.browser.lasting_page import lasting_page
from tests.browser.senders import CRITICAL, Senders

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

SCRIPT = "<script>document.title='hacked'</script>"
IMAGE = "<img src=x onerror=\"document.title='hacked'\">"
HOSTILE = [
    SCRIPT,
    IMAGE,
    "<svg/onload=document.title='hacked'>",
    "<javascript:document.title='hacked'|click>",
    "<data:text/html,<script>document.title='hacked'</script>|click>",
    "<JaVaScRiPt:alert(1)>",
    "`</code><script>document.title='hacked'</script>`",
    '<https://example.org/"onmouseover="document.title=1|click>',
    "*" * 2000,
    "<" * 2000,
]


async def nothing_ran(page: Page) -> None:
    assert "hacked" not in await page.title()
    assert await page.locator("script").count() == 1  # our own
    assert await page.locator("[onerror], [onload], [onmouseover]").count() == 0
    schemes = await page.evaluate("[...document.links].map((a) => a.protocol)")
    assert set(schemes) <= {"http:", "https:"}


async def test_nothing_in_a_slack_message_runs(page: Page, senders: Senders) -> None:
    for text in HOSTILE:
        await senders.post(text[:140], body=text)
        await senders.slack.chat_postMessage(channel=CRITICAL, text=text)
    await expect(page.locator(".message")).to_have_count(2 * len(HOSTILE))
    await nothing_ran(page)


async def test_nothing_in_an_incident_runs(page: Page, senders: Senders) -> None:
    for n, text in enumerate(HOSTILE):
        payload = {"source": text[:200], "custom_details": {"firing": text}}
        await senders.page("trigger", text[:1000], payload=payload, dedup_key=f"{n}{text}"[:255])
    texts = [text[:1000] for text in reversed(HOSTILE)]
    await expect(page.locator(".incident h3")).to_have_text(texts)
    await nothing_ran(page)


async def test_escaped_mentions_stay_text(page: Page, senders: Senders) -> None:
    await senders.post(
        "x", body="&lt;!channel&gt; &lt;@U123&gt; &lt;https://evil.example.org|bank&gt; &amp;lt;!here&amp;gt;"
    )
    text = page.locator(".message .b-text").first
    await expect(text).to_have_text("<!channel> <@U123> <https://evil.example.org|bank> &lt;!here&gt;")
    await expect(text.locator(".mention, a")).to_have_count(0)


async def test_nothing_in_a_mails_subject_or_text_runs(page: Page, senders: Senders) -> None:
    await senders.mail(f"{SCRIPT}{IMAGE}", "<p>x</p>", f"{SCRIPT}{IMAGE}")
    await page.locator(".mail-open").click()
    await page.get_by_role("button", name="Plain text").click()
    await expect(page.locator(".mail-text")).to_have_text(re.compile(re.escape(SCRIPT)))
    await nothing_ran(page)


async def test_a_mails_html_runs_no_script_and_leaves_its_frame_for_nobody(chromium: Browser, senders: Senders) -> None:
    html = (
        "<h1>shown</h1><script>top.document.title='hacked'; document.querySelector('h1').textContent='hacked'</script>"
        "<img src=x onerror=\"document.querySelector('h1').textContent='hacked'\">"
        '<meta http-equiv="refresh" content="0;url=/api/state"><form action="/api/faults" method="post">'
        '<button>press</button></form><a href="javascript:document.title=1">click</a>'
    )
    await senders.mail("hostile", html)
    errors: list[str] = []  # the sandbox blocks what the mail tries
    async with lasting_page(chromium, errors, []) as page:
        await page.goto(f"http://{senders.stand_ins.http}/")
        await page.locator(".mail-open").click()
        frame = page.frame_locator("iframe")
        await expect(frame.get_by_role("heading")).to_have_text("shown")
        await frame.get_by_role("button", name="press").click()
        await expect(frame.get_by_role("heading")).to_have_text("shown")
        assert await page.title() == "keypulse on call"
        assert senders.stand_ins.faults.get_state() == []
        assert any("sandboxed" in text for text in errors)


async def test_the_frame_alone_keeps_a_mail_without_scripts_and_without_our_origin(
    chromium: Browser, senders: Senders
) -> None:
    """Two fences: here the mail comes without its own Content-Security-Policy, and the frame's sandbox has to hold."""
    await senders.mail("hostile", "<h1>shown</h1><script>document.querySelector('h1').textContent='hacked'</script>")

    async def without_its_policy(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(body=await answer.body(), content_type="text/html")

    async with lasting_page(chromium, [], []) as page:  # this one may complain: the sandbox blocks what the mail tries
        await page.route("**/mail/*", without_its_policy)
        await page.goto(f"http://{senders.stand_ins.http}/")
        await page.locator(".mail-open").click()
        heading = page.frame_locator("iframe").get_by_role("heading")
        await expect(heading).to_have_text("shown")
        assert await heading.evaluate("() => self.origin") == "null"
