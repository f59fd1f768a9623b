"""`python -m tests.browser.console.pictures [FOLDER]` makes the pictures of the console in docs/images anew.

With a folder it writes every page there whole, wide and as on a phone, light and dark, to be looked at.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.async_api import async_playwright

from tests.browser.conftest import FLAGS, chromium_path
from tests.browser.console.channel_scene import ROUTES, build_channels, seed_checks
from tests.browser.console.served_console import open_console, open_page

IMAGES: Final = Path(__file__).parents[3] / "docs/images"
PAGES: Final = {"console-channels": "/channels", "console-render": "/channels/-/render"}
"""Each picture, and the address of its page."""
_SIZES: Final = {"wide": (1280, 900), "phone": (390, 844)}


async def take(folder: Path, *, every: bool) -> None:
    """Writes the pictures, or `every` page in each size and scheme."""
    with tempfile.TemporaryDirectory() as temporary:
        scene = Path(temporary)
        await seed_checks(scene)
        async with (
            open_console(scene, channels=build_channels(scene), routes=ROUTES) as console,
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
            for name, path in PAGES.items():
                for size, (width, height) in _SIZES.items() if every else [("wide", _SIZES["wide"])]:
                    for scheme in ("light", "dark") if every else ("light",):
                        address = f"{console.url}{path}"
                        async with open_page(browser, address, width=width, height=height, scheme=scheme) as page:
                            for frame in await page.locator("iframe").all():
                                await frame.content_frame.locator("body *").first.wait_for()
                            ending = f"-{size}-{scheme}" if every else ""
                            await page.screenshot(path=folder / f"{name}{ending}.png", full_page=every)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]) if sys.argv[1:] else IMAGES, every=bool(sys.argv[1:])))
