"""Whatever a name or a service's text holds, the board shows it as text; and nothing but its own script runs."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from services.exporter.history import History
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    Operation,
    ProbeResult,
    TargetKey,
)
from shared.backend_contract import CryptoMode
from shared.kms.port import ConnectivityPhase, KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Reason
from tests.browser.accessibility import HOSTILE, nothing_ran
from tests.browser.conftest import opened
from tests.browser.lasting_page import lasting_page
from tests.browser.scenes import NOW
from tests.browser.served_board import serve_board
from tests.browser.test_board_live import focus

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

TEXTS = [*HOSTILE, '"><b id=broken>', "'-alert(1)-'", "{{ 7 * 7 }}", "\u202etxet desrever", "&lt;b&gt;", "a\x00b\nc"]


def fail(history: History, text: str) -> None:
    """Everything that a service or a backend may say, says `text`."""
    failure = Failure(Reason.INVALID_REQUEST, text)
    call = Call(Operation.ENCRYPT, 0.01, failure)
    history.add_probe(ProbeResult(text, text, NOW - 5, (call,), text, text, (ConnectivityPhase("tcp", 0.1, text),)))
    history.add_inspection(
        KeyInspection(
            text,
            text,
            NOW - 5,
            KeyDescription("1", None, (KeyVersion("1", VersionState.UNKNOWN, text, NOW + 5000, None, text, text),), 2),
            {text: False},
            (CanaryResult(text, call),),
            Call(Operation.DECRYPT, 0.01, failure),
            {},
            (text,),
        )
    )
    down = BackendState(text, None, problems=(text,), replica=text)
    history.set_backend_states([down, BackendState(text, Health(CryptoMode.ENV, ready=False), problems=(text,))])


@pytest.fixture
def history() -> History:
    filled = History(clock=lambda: NOW - 5)
    filled.configure({(text, text): TargetKey() for text in TEXTS}, TEXTS)
    return filled


@pytest_asyncio.fixture(loop_scope="session")
async def hostile(chromium: Browser, history: History, browser_errors: list[str]) -> AsyncIterator[Page]:
    async with (
        serve_board(history, clock=lambda: NOW) as address,
        opened(chromium, f"http://{address}/", browser_errors) as page,
    ):
        yield page


async def test_nothing_in_a_name_or_a_services_text_runs(hostile: Page, history: History) -> None:
    """By the first page, by what comes after it, and by the page of the failures."""
    names = hostile.locator("[data-kind=keys] h3")
    await expect(names).to_have_count(len(TEXTS))
    for text in TEXTS:
        fail(history, text)
    await focus(hostile)
    await expect(hostile.locator("[data-kind=keys] .card.failing")).to_have_count(len(TEXTS))
    displayed_names = set(await names.all_text_contents())
    assert displayed_names == {text.replace("\x00", "") for text in TEXTS}
    await nothing_ran(hostile)
    assert await hostile.locator("#broken").count() == 0
    await hostile.goto(hostile.url)
    await expect(hostile.locator("[data-kind=keys] .card.failing")).to_have_count(len(TEXTS))
    await nothing_ran(hostile)
    links = hostile.locator("[data-kind=keys]").get_by_role("link", name="All failures")
    addresses = await links.evaluate_all("nodes => nodes.map((node) => node.href)")
    assert len(addresses) == len(TEXTS)
    for address in addresses:
        await hostile.goto(address)
        await expect(hostile.locator(".spans .card")).to_have_count(1)
        assert await hostile.title() != "49"
        await expect(hostile.locator("b#broken, h1 b")).to_have_count(0)
        assert await hostile.locator("script").count() == 0
    await hostile.evaluate("window.sameDocument = true")  # here it was meant to be left


async def test_a_filter_with_markup_stays_a_filter(hostile: Page) -> None:
    for text in HOSTILE:
        await hostile.get_by_role("searchbox").fill(text)
        await expect(hostile.locator("[data-kind=keys] h3")).to_have_count(sum(text in name for name in TEXTS))
        await nothing_ran(hostile)
    await hostile.reload()
    await expect(hostile.get_by_role("searchbox")).to_have_value(HOSTILE[-1][:200])
    await nothing_ran(hostile)
    await hostile.evaluate("window.sameDocument = true")  # this reload was meant


async def test_the_policy_lets_no_other_script_run_even_if_one_got_in(chromium: Browser, history: History) -> None:
    errors: list[str] = []  # the policy refuses what is tried
    async with serve_board(history, clock=lambda: NOW) as address, lasting_page(chromium, errors, []) as page:
        await page.goto(f"http://{address}/")
        await page.locator("#live.on").wait_for()
        await page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "document.title = 'hacked'";
              document.body.append(script);
              document.getElementById("main").insertAdjacentHTML(
                "beforeend", "<img src=x onerror=\\"document.title='hacked'\\"><p style='color:red' id=styled>x</p>");
              const foreign = document.createElement("script");
              foreign.src = "https://example.org/x.js";
              document.body.append(foreign);
            }"""
        )
        await expect(page.locator("#styled")).to_have_count(1)
        assert await page.locator("#styled").evaluate("node => getComputedStyle(node).color") != "rgb(255, 0, 0)"
        assert "hacked" not in await page.title()
        assert await page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert sum("Content Security Policy" in text for text in errors) >= 4
