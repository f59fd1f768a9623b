"""The board for everybody: narrow windows, both colour schemes, the keyboard, a screen reader, no JavaScript."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

import pytest
from playwright.async_api import Browser, Page, expect

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from shared.kms.reason import Reason
from tests.browser.accessibility import COLOURS, FOCUS, check_accessibility, find_violations
from tests.browser.conftest import opened
from tests.browser.scenes import NOW, SCENES, degraded, failing
from tests.browser.served_board import serve_board

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

WIDTHS = (320, 390, 1280)
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")


@asynccontextmanager
async def board(chromium: Browser, history: History, browser_errors: list[str]) -> AsyncIterator[Page]:
    async with (
        serve_board(history, clock=lambda: NOW) as address,
        opened(chromium, f"http://{address}/", browser_errors) as page,
    ):
        yield page


async def open_failures(page: Page, target: str) -> None:
    await page.goto(f"{page.url}history?target={target}")
    await page.evaluate("window.sameDocument = true")  # the board was meant to be left


@pytest.mark.parametrize(
    "scene", [pytest.param(each, marks=[pytest.mark.played] * (each not in ("failing", "transit"))) for each in SCENES]
)
async def test_it_is_accessible_fresh_and_old(chromium: Browser, browser_errors: list[str], scene: str) -> None:
    async with board(chromium, SCENES[scene](), browser_errors) as page:
        await page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        await check_accessibility(page)
        await page.evaluate("document.body.classList.add('old')")
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            assert await find_violations(page, COLOURS) == [], scheme
        await open_failures(page, "vault-kek")
        await check_accessibility(page)


MARKS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if ((colour[3] ?? 1) === 1) return colour;
    }
  };
  const of = (node, colour) => {
    const [a, b] = [light(rgb(colour)), light(ground(node.closest("svg")))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.closest("svg").getAttribute("class")];
  };
  return [
    ...[...document.querySelectorAll(".led")].map((node) => of(node, getComputedStyle(node).color)),
    ...[...document.querySelectorAll("polyline")].map((node) => of(node, getComputedStyle(node).stroke)),
  ];
}"""


async def test_lights_and_lines_are_seen(chromium: Browser, browser_errors: list[str]) -> None:
    """WCAG 2.2, 1.4.11: 3 to 1."""
    async with board(chromium, degraded(), browser_errors) as page:
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            found = await page.evaluate(MARKS)
            assert len(found) > 12
            assert [entry for entry in found if entry[0] < 3] == [], scheme


async def test_a_light_is_more_than_its_colour(chromium: Browser, browser_errors: list[str]) -> None:
    """WCAG 2.2, 1.4.1: each has a shape and a word."""
    history = degraded()
    watched = {(record.service, name): record.key for name, record in history.targets.items()}
    history.configure({**watched, ("x", "new"): TargetKey()}, ["ledger"])
    async with board(chromium, history, browser_errors) as page:
        shapes = await page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".card > header")].map((header) =>
                 [header.querySelector(".state").textContent, header.querySelector(".led").innerHTML.trim()]))"""
        )
    assert set(shapes) == {"Failing", "Degraded", "Unknown", "Healthy"}
    assert len(set(shapes.values())) == 4


async def test_nothing_is_wider_than_the_window(chromium: Browser, browser_errors: list[str]) -> None:
    history = degraded()
    long = "w" * 200
    watched = {(record.service, name): record.key for name, record in history.targets.items()}
    history.configure({**watched, (long, long): TargetKey()}, ["ledger"])
    failure = Failure(Reason.INVALID_REQUEST, "y" * 500)
    history.add_probe(ProbeResult(long, long, NOW - 3, (Call(Operation.ENCRYPT, 0.1, failure),), None))
    async with board(chromium, history, browser_errors) as page:
        await page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        spilling = """() => [...document.querySelectorAll(".card *:not(svg *):not(.hidden)")]
          .filter((node) => !node.closest(".scroll table") &&
            node.getBoundingClientRect().right > node.closest(".card").getBoundingClientRect().right + 1)
          .map((node) => node.outerHTML)"""
        for width in WIDTHS:
            await page.set_viewport_size({"width": width, "height": 640})
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            assert await page.evaluate(spilling) == [], width
        await open_failures(page, long)
        for width in WIDTHS:
            await page.set_viewport_size({"width": width, "height": 640})
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


async def test_the_keyboard_reaches_everything_and_the_focus_is_seen(
    chromium: Browser, browser_errors: list[str]
) -> None:
    async with board(chromium, failing(), browser_errors) as page:
        reached = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            name, outline = await page.evaluate(FOCUS)
            if name:
                assert outline, name
                reached.append(name)
        assert reached[0] == "Skip to content"
        assert {"filter", "Runbook: What a cause means", "All failures of vault-kek", "metrics"} <= set(reached)
        assert reached.count("Versions, permissions, canaries") >= 3
        await page.locator("summary").first.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("region", name="Versions of vault-kek")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("region", name="Versions of vault-kek")).to_be_focused()  # so that it scrolls
        await page.get_by_role("link", name="Skip to content").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()


async def test_without_javascript_everything_is_there(chromium: Browser) -> None:
    context = await chromium.new_context(java_script_enabled=False)
    page = await context.new_page()
    async with serve_board(failing(), clock=lambda: NOW) as address:
        await page.goto(f"http://{address}/")
        await expect(page.locator(".live")).to_have_text("As of 2026-01-15 09:30:00 UTC; reload to update")
        await expect(page.get_by_role("article")).to_have_count(5)
        vault = page.get_by_role("article", name="vault-kek")
        for text in ("Failing", "connect (unavailable) at encrypt", "It is the network", "What to do:", "4 min ago"):
            await expect(vault).to_contain_text(text)
        await vault.locator("summary").click()
        await expect(vault.get_by_role("row").filter(has_text="ENABLED")).to_have_count(3)
        await page.get_by_role("searchbox").fill("archive")
        await page.get_by_role("searchbox").press("Enter")
        await expect(page.get_by_role("article")).to_have_count(1)
        await page.goto(f"http://{address}/history?target=vault-kek")
        await expect(page.locator(".spans .card")).to_have_count(1)
    await context.close()
