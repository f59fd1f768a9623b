"""`python -m tests.browser.pictures` makes those of docs/images anew: the board in three states, with Chromium."""

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Browser, ViewportSize

from tests.browser.conftest import run_chromium
from tests.browser.lasting_page import lasting_page
from tests.browser.scenes import NOW, SCENES
from tests.browser.served_board import serve_board

IMAGES = Path(__file__).parents[2] / "docs/images"
DOCUMENTED = ("failing", "refused", "transit")
SIZES = {
    "": ViewportSize(width=1280, height=900),
    "-wide": ViewportSize(width=1920, height=1080),
    "-phone": ViewportSize(width=390, height=844),
}


async def take(browser: Browser, folder: Path, *, every: bool) -> None:
    """Writes board-STATE.png as a light window shows it; or, of `every` state, scheme and width, the whole page."""
    for name, scene in SCENES.items():
        if not every and name not in DOCUMENTED:
            continue
        async with serve_board(scene(), clock=lambda: NOW) as address:
            for size, viewport in SIZES.items() if every else [("", SIZES[""])]:
                for scheme in ("light", "dark") if every else ("light",):
                    async with lasting_page(browser, [], [], **viewport, scheme=scheme, reduced_motion=True) as page:
                        await page.goto(f"http://{address}/")
                        await page.locator("#live.on").wait_for()
                        ending = f"{size}-{scheme}" if every else ""
                        await page.screenshot(path=folder / f"board-{name}{ending}.png", full_page=every)


async def main() -> None:
    """Takes them with a browser of its own."""
    async with run_chromium() as browser:
        await take(browser, Path(sys.argv[1]) if sys.argv[1:] else IMAGES, every=bool(sys.argv[1:]))


if __name__ == "__main__":
    asyncio.run(main())
