"""The board on a desk: no half of it is left empty, whatever is watched, and it never needs to be scrolled sideways."""

import pytest
from playwright.async_api import Browser

from services.exporter.history import History
from services.exporter.model import BackendState, Call, Health, Operation, ProbeResult, TargetKey
from shared.backend_contract import CryptoMode
from tests.browser.conftest import opened
from tests.browser.scenes import NOW
from tests.browser.served_board import serve_board

pytestmark = pytest.mark.asyncio(loop_scope="session")  # with the browser

ROWS = """() => {
  const inner = document.querySelector("#main .bar").getBoundingClientRect();
  const rows = new Map();
  for (const card of document.querySelectorAll(".card")) {
    const { top, right } = card.getBoundingClientRect();
    rows.set(Math.round(top), Math.max(right, rows.get(Math.round(top)) ?? 0));
  }
  return [...rows.values()].map((right) => (right - inner.left) / inner.width);
}"""


def watched(backends: int, keys: int) -> History:
    history = History(clock=lambda: NOW)
    history.configure(
        dict.fromkeys([("ledger", f"key-{n}") for n in range(keys)], TargetKey()),
        [f"service-{n}" for n in range(backends)],
    )
    for n in range(backends):
        history.set_backend_states([BackendState(f"service-{n}", Health(CryptoMode.KMS, ready=True))])
    for n in range(keys):
        for ago in range(300, 0, -30):
            call = Call(Operation.ENCRYPT, 0.02)
            history.add_probe(ProbeResult("ledger", f"key-{n}", NOW - ago, (call,), "v/1"))
    return history


@pytest.mark.parametrize(("backends", "keys"), [(1, 1), (1, 2), (2, 3), (0, 1)])
async def test_each_row_of_cards_reaches_the_right_edge_at_1280(
    backends: int, keys: int, chromium: Browser, browser_errors: list[str]
) -> None:
    async with (
        serve_board(watched(backends, keys), clock=lambda: NOW) as address,
        opened(chromium, f"http://{address}/", browser_errors) as page,
    ):
        await page.set_viewport_size({"width": 1280, "height": 800})
        ends = await page.evaluate(ROWS)
        assert ends
        assert ends == pytest.approx([1.0] * len(ends), abs=0.01)
        for width in (2400, 1280, 390):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
