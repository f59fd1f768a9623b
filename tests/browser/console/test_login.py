"""The login, the logout and the audit, as a person uses them, with the keyboard alone; and at a real provider."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from shared.config.settings import Address
from tests.browser.accessibility import check_accessibility
from tests.browser.console.login_scene import EMIL, open_closed_console
from tests.browser.console.served_console import Console
from tests.browser.lasting_page import lasting_page
from tests.relay.login.provider import open_provider

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),  # with the browser
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the provider uses authlib's older part
]


@asynccontextmanager
async def open_browser(chromium: Browser) -> AsyncIterator[tuple[BrowserContext, Page]]:
    """A page without a session, in which nothing opens a dialogue."""
    browser_errors: list[str] = []
    async with lasting_page(chromium, browser_errors, [], reduced_motion=True) as page:
        yield page.context, page
    assert [each for each in browser_errors if each.startswith("dialog:")] == []


async def test_a_person_with_a_token_logs_in_acts_and_logs_out_by_the_keyboard(
    chromium: Browser, tmp_path: Path
) -> None:
    async with open_closed_console(tmp_path) as console, open_browser(chromium) as (context, page):
        await page.goto(f"{console.url}/audit?limit=50")
        assert page.url == f"{console.url}/login?next=/audit%3Flimit%3D50"
        await expect(page.get_by_label("Token")).to_be_focused()
        await check_accessibility(page)
        await page.keyboard.type("not-a-token-of-anybody")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This token is not valid.")
        await check_accessibility(page)
        await expect(page.get_by_label("Token")).to_be_focused()
        await page.keyboard.type(EMIL)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Audit")).to_be_visible()
        assert page.url == f"{console.url}/audit?limit=50"
        (cookie,) = [each for each in await context.cookies() if each["name"] == "keypulse_session"]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        assert "keypulse_session" not in await page.evaluate("document.cookie")

        await expect(page.locator("#live.on")).to_be_visible()  # the stream knows the session, too
        rows = page.locator("#audit_entries tbody tr")
        await expect(rows).to_have_count(1)
        incident = await find_open_incident(console)
        async with console.client.post(f"/api/incidents/{incident}/acknowledge") as answer:
            assert answer.status == 200
        await expect(rows).to_have_count(2)  # without a reload
        await expect(rows.first).to_contain_text("acknowledge")
        await check_accessibility(page)
        link = rows.first.get_by_role("link")
        await expect(link).to_have_attribute("href", f"/incidents/{incident}")

        headers = await page.locator("body").get_attribute("hx-headers") or ""
        act = "async ([path, headers]) => (await fetch(path, {method: 'POST', headers})).status"
        path = f"/api/incidents/{incident}/unacknowledge"
        assert await page.evaluate(act, [path, {}]) == 403
        assert await page.evaluate(act, [path, json.loads(headers)]) == 200

        await page.get_by_role("button", name="Log out").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await page.go_back()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()  # nothing is shown from a cache


async def test_an_open_page_leads_to_the_login_once_its_session_has_ended(chromium: Browser, tmp_path: Path) -> None:
    async with open_closed_console(tmp_path) as console, open_browser(chromium) as (context, page):
        await page.goto(f"{console.url}/audit")
        await page.get_by_label("Token").fill(EMIL)
        await page.keyboard.press("Enter")
        await expect(page.locator("#live.on")).to_be_visible()
        await context.clear_cookies()
        await console.post(group="later")
        await page.wait_for_url(f"{console.url}/login?next=/audit")


async def test_a_person_logs_in_at_the_provider_and_comes_back_to_the_page(
    chromium: Browser, reserved_address: Address, tmp_path: Path
) -> None:
    with open_provider() as provider:
        await provider.set_person("anna", email="anna@example.org", email_verified=True, groups=["sre"])
        (tmp_path / "client").write_text("a-secret")
        oidc = {
            "issuer": provider.issuer,
            "client_id": "keypulse",
            "client_secret_file": str(tmp_path / "client"),
            "roles": {"sre": "viewer"},
        }
        public_url = f"http://{reserved_address}"
        async with (
            open_closed_console(tmp_path, reserved_address, oidc=oidc, public_url=public_url) as console,
            open_browser(chromium) as (_, page),
        ):
            await page.goto(f"{console.url}/audit")
            await page.get_by_role("link", name="Log in at localhost").click()
            await page.locator("input[name=sub]").fill("anna")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("heading", name="Audit")).to_be_visible()
            assert page.url == f"{console.url}/audit"
            await expect(page.locator("header .caller")).to_contain_text("anna@example.org")
            await expect(page.locator("header .caller")).to_contain_text("viewer")
            await page.goto(f"{console.url}/login")
            await expect(page.get_by_text("You are anna@example.org, viewer.")).to_be_visible()
            await check_accessibility(page)
            await page.goto(f"{console.url}/quarantine/1")
            await expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
            await expect(page.get_by_role("alert")).to_contain_text("role admin")
            await check_accessibility(page)

            hostile = "<script>alert(1)</script><img src=//evil.example.org/x>"
            await provider.set_person("mallory", preferred_username=hostile, groups=["sre"])
            await page.goto(f"{console.url}/login")
            await page.get_by_role("button", name="Log out").click()
            await page.get_by_role("link", name="Log in at localhost").click()
            await page.locator("input[name=sub]").fill("mallory")
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"{console.url}/")
            await page.goto(f"{console.url}/audit")
            await expect(page.locator("#audit_entries tbody tr").first).to_contain_text(hostile)
            await expect(page.locator("header .caller")).to_contain_text(hostile)


async def find_open_incident(console: Console) -> str:
    async with console.client.get("/api/incidents?status=firing&limit=1") as answer:
        return str((await answer.json())["incidents"][0]["id"])
