"""The board changes by itself, tells a screen reader once, and takes nothing away from the person who reads it."""

import pytest
from playwright.async_api import Browser, Locator, Page, Request, expect

from ops.kms_emulator.faults import EmulatorFault
from services.exporter.model import BackendState, Health, TargetKey
from shared.backend_contract import CryptoMode
from shared.config.settings import Address
from tests.browser.lasting_page import lasting_page
from tests.browser.scenes import NOW, failing, healthy
from tests.browser.served_board import Watched, key_name, serve_board

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

LEDGER = "ledger-kek"
HEARD = """() => {
  window.heard = [];
  const node = document.getElementById("changes");
  new MutationObserver(() => heard.push(node.textContent)).observe(node, { childList: true });
}"""


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


async def focus(page: Page) -> None:
    """The board asks at once, as when its tab comes to the front; by itself it does within two seconds."""
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def break_ledger(watch: Watched) -> None:
    watch.kms.faults.add(EmulatorFault(kind="cause", cause="role_missing", message="no role", key=key_name(LEDGER)))
    await watch.probe(LEDGER)


async def test_a_probe_that_fails_changes_its_card_without_a_reload(board: Page, watch: Watched) -> None:
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Unknown")
    await watch.probe()
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Healthy")
    await break_ledger(watch)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Failing")
    await expect(card(board, LEDGER)).to_contain_text("role_missing (permission_denied) at encrypt")
    await expect(card(board, LEDGER)).to_contain_text("no role")
    await expect(card(board, LEDGER)).to_contain_text("What to do: Grant the service account its role on this key")
    link = card(board, LEDGER).get_by_role("link", name="Runbook: What a cause means")
    await expect(link).to_have_attribute("href", "https://example.org/docs/KMS_OPERATIONS.md#what-a-cause-means")
    audit, ask, grant = await card(board, LEDGER).locator(".fixes code").all_inner_texts()
    assert audit.startswith("gcloud logging read --project=")
    assert ask.startswith("gcloud policy-intelligence troubleshoot-policy iam ")
    assert grant.startswith(f"gcloud kms keys add-iam-policy-binding {key_name(LEDGER).rpartition('/')[2]} --project=")
    assert "\n" not in grant, "it is pasted as one line, however it is wrapped"
    await expect(board.locator(".verdict")).to_have_text("1 of 4 failing")
    await expect(board).to_have_title("(1 failing) keypulse exporter")
    await expect(board.locator("[data-kind=keys] h3").first).to_have_text(LEDGER)  # the failing ones first
    watch.kms.faults.clear()
    await watch.probe(LEDGER)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Healthy")
    await expect(card(board, LEDGER)).to_contain_text("Last failure")
    await expect(board).to_have_title("keypulse exporter")


async def test_a_screen_reader_hears_of_a_failure_once(board: Page, watch: Watched) -> None:
    await watch.probe()
    await focus(board)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Healthy")
    await board.evaluate(HEARD)
    await break_ledger(watch)
    for count in (2, 3):
        await watch.probe(LEDGER)
        await focus(board)
        await expect(card(board, LEDGER)).to_contain_text(f"{count} in a row")
    assert await board.evaluate("heard") == [f"{LEDGER}: Failing, role_missing (permission_denied) at encrypt"]
    assert await board.locator("#changes").get_attribute("aria-live") == "polite"


async def test_the_focus_and_what_was_opened_stay_when_a_card_is_renewed_or_moves(board: Page, watch: Watched) -> None:
    await watch.probe()
    await watch.read()
    await focus(board)
    summary = card(board, LEDGER).locator("summary")
    await summary.click()
    await expect(card(board, LEDGER).locator("details")).to_have_attribute("open", "")
    assert await board.locator("[data-kind=keys] h3").all_text_contents() == ["archive-kek", LEDGER, "vault-kek"]
    await break_ledger(watch)
    await focus(board)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Failing")
    await expect(board.locator("[data-kind=keys] h3").first).to_have_text(LEDGER)
    await expect(summary).to_be_focused()
    await expect(card(board, LEDGER).locator("details")).to_have_attribute("open", "")
    await expect(card(board, "vault-kek").locator("details")).not_to_have_attribute("open", "")


async def test_a_focus_whose_element_is_gone_is_not_thrown_out_of_the_page(board: Page, watch: Watched) -> None:
    await watch.probe()
    await watch.read(LEDGER)
    await focus(board)
    await card(board, LEDGER).locator("summary").focus()
    watch.history.configure({("backend", "vault-kek"): TargetKey()}, ["backend"])
    await focus(board)
    await expect(card(board, LEDGER)).to_have_count(0)
    await expect(board.get_by_role("main")).to_be_focused()


async def test_text_that_is_being_selected_stays_until_there_is_a_change(board: Page, watch: Watched) -> None:
    await break_ledger(watch)
    await focus(board)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Failing")
    await board.evaluate("getSelection().selectAllChildren(document.querySelector('.failing .what'))")
    await watch.probe(LEDGER, "vault-kek")
    await focus(board)
    await expect(card(board, "vault-kek").locator(".state")).to_have_text("Healthy")  # so the page has looked again
    assert await board.evaluate("String(getSelection()).trim()") == "role_missing (permission_denied) at encrypt"
    await board.evaluate("getSelection().removeAllRanges()")
    await focus(board)
    await expect(card(board, LEDGER)).to_contain_text("2 in a row")
    await board.evaluate("getSelection().selectAllChildren(document.querySelector('.failing .what'))")
    watch.kms.faults.clear()
    await watch.probe(LEDGER)
    await focus(board)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Healthy")  # news go before


async def test_a_backend_changes_too_and_a_reload_adds_and_removes_cards(board: Page, watch: Watched) -> None:
    watch.backend()
    await focus(board)
    await expect(card(board, "backend").locator(".state")).to_have_text("Healthy")
    watch.backend(Health(CryptoMode.ENV, ready=True))
    await focus(board)
    await expect(card(board, "backend")).to_contain_text("local key (mode env)")
    watch.backend(None, "health check: connection refused")
    await focus(board)
    await expect(card(board, "backend")).to_contain_text("health check: connection refused")
    watch.history.configure(
        {("backend", name): watch.history.targets[LEDGER].key for name in (LEDGER, "brand-new")}, ["backend", "other"]
    )
    await focus(board)
    await expect(card(board, "brand-new").locator(".state")).to_have_text("Unknown")
    await expect(card(board, "other").locator(".state")).to_have_text("Unknown")
    await expect(card(board, "vault-kek")).to_have_count(0)
    watch.history.set_backend_states([BackendState("other", Health(CryptoMode.KMS, ready=True), replica="10.0.0.7")])
    await focus(board)
    await expect(card(board, "other 10.0.0.7").locator(".state")).to_have_text("Healthy")


async def test_a_lost_connection_is_shown_until_it_is_back(chromium: Browser, watch: Watched) -> None:
    async with lasting_page(chromium, [], []) as page:  # this one may complain: it is cut off
        await page.goto(watch.url)
        live = page.get_by_role("status")
        await expect(live).to_have_text("Live")
        await page.context.set_offline(True)
        await expect(live).to_contain_text("Connection lost. What is shown is from")
        await expect(live).to_be_in_viewport()
        assert await page.evaluate("getComputedStyle(document.querySelector('.top')).position") == "sticky"
        await watch.probe()
        await page.context.set_offline(False)
        await expect(live).to_have_text("Live")
        await expect(card(page, LEDGER).locator(".state")).to_have_text("Healthy")


async def test_an_answer_that_is_an_error_is_named(chromium: Browser, watch: Watched) -> None:
    async with lasting_page(chromium, [], []) as page:  # this one may complain: it is refused
        await page.route("**/api/board?*", lambda route: route.fulfill(status=401, body="{}"))
        await page.goto(watch.url)
        await expect(page.get_by_role("status")).to_contain_text("Connection lost: the server answered 401.")


@pytest.mark.played
async def test_the_board_goes_on_with_an_exporter_that_was_restarted(
    chromium: Browser, reserved_address: Address
) -> None:
    async with lasting_page(chromium, [], []) as page:  # this one may complain: the server is away for a while
        async with serve_board(healthy(), clock=lambda: NOW, listen=reserved_address) as address:
            await page.goto(f"http://{address}/")
            await expect(page.get_by_role("status")).to_have_text("Live")
            await expect(page.locator(".verdict")).to_have_text("All 5 healthy")
            await page.evaluate("window.sameDocument = true")
        await expect(page.get_by_role("status")).to_contain_text("Connection lost")
        async with serve_board(failing(), clock=lambda: NOW, listen=address):
            await expect(page.locator(".verdict")).to_have_text("1 of 5 failing")
            await expect(card(page, "vault-kek").locator(".state")).to_have_text("Failing")
        assert await page.evaluate("window.sameDocument") is True


async def test_what_is_filtered_stays_filtered(board: Page, watch: Watched) -> None:
    await watch.probe()
    await focus(board)
    await expect(card(board, "vault-kek").locator(".state")).to_have_text("Healthy")
    await board.evaluate(HEARD)
    await board.get_by_role("searchbox", name="Filter").fill("VAULT")
    await expect(board.locator("[data-kind=keys] h3")).to_have_text(["vault-kek"])
    await expect(board.locator("[data-kind=backends] .foot")).to_have_text("No match for “VAULT”.")
    await break_ledger(watch)
    await focus(board)
    await expect(board.locator(".verdict")).to_have_text("1 of 4 failing")
    await expect(board.locator("[data-kind=keys] h3")).to_have_text(["vault-kek"])
    assert board.url.endswith("/?q=VAULT")
    await board.get_by_role("searchbox", name="Filter").fill("")
    await expect(board.locator("[data-kind=keys] h3")).to_have_count(3)
    await expect(card(board, LEDGER).locator(".state")).to_have_text("Failing")
    assert await board.evaluate("heard") == []  # a person knows what the filter did


@pytest.mark.played
async def test_a_tab_behind_another_asks_less_often_and_its_title_still_shows_it(
    chromium: Browser, watch: Watched
) -> None:
    page = await chromium.new_page()
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if "/api/board" in request.url else None)
    await page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => Boolean(window.behind) })")
    await page.clock.install()
    await page.goto(watch.url)
    await expect(page.get_by_role("status")).to_have_text("Live")

    async def count_requests(seconds: int) -> int:
        """They pass, two at a time, and each request is answered; how often the page asked meanwhile."""
        before = len(requests)
        for _ in range(0, seconds, 2):
            await page.clock.run_for(2000)
            answer = await requests[-1].response()
            assert answer is not None
            await answer.finished()
            await page.evaluate("fetch('/-/healthy').then((answer) => answer.text())")  # by then it is shown, too
        return len(requests) - before

    assert await count_requests(10) >= 3
    await page.evaluate("window.behind = true")
    await break_ledger(watch)
    assert await count_requests(40) <= 3
    await expect(page).to_have_title("(1 failing) keypulse exporter")
    watch.kms.faults.clear()
    await watch.probe(LEDGER)
    await page.evaluate("window.behind = false; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page).to_have_title("keypulse exporter")  # at once
    await page.close()
