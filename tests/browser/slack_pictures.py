"""`python -m tests.browser.slack_pictures` makes those of docs/images anew: an incident in Slack, with Chromium.

With a folder as its argument it writes each scene there, wide and for a phone, light and dark.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser, Locator, Page, ViewportSize

from ops.demo.stand_ins.app import run_stand_ins
from tests.browser.conftest import run_chromium
from tests.browser.slack_scenes import REFUSED, SCENES, SlackScene

IMAGES: Final = Path(__file__).parents[2] / "docs/images"
COMMITTED: Final = ("firing", "changed", "acknowledged", "resolved", "twenty", "digest", "hostile", *REFUSED)
SIZES: Final = {"wide": ViewportSize(width=1900, height=2600), "phone": ViewportSize(width=390, height=3200)}
"""Tall enough for a whole message."""
_TOKEN: Final = "xoxb-picture"  # of the stand-in alone


@asynccontextmanager
async def run_scene(name: str) -> AsyncIterator[str]:
    """Plays a scene; gives the address of the page that shows it."""
    with tempfile.TemporaryDirectory() as secrets:
        async with run_stand_ins(slack_tokens=(_TOKEN,)) as stand_ins:
            scene = SlackScene(stand_ins, Path(secrets), _TOKEN)
            await SCENES[name](scene)
            await scene.close()
            yield f"http://{stand_ins.http}/"


@asynccontextmanager
async def open_page(
    browser: Browser, url: str, size: str, scheme: Literal["light", "dark"] = "light"
) -> AsyncIterator[Page]:
    """The page, with the thread of its first message open."""
    async with await browser.new_page(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce") as page:
        await page.goto(url)
        await page.locator("#live.on").wait_for()
        thread = get_thread(page)
        await thread.wait_for()
        if await thread.locator("summary").is_visible():
            await thread.locator("summary").click()
        yield page


def get_thread(page: Page) -> Locator:
    """The first message with its thread; the page shows the newest above it."""
    return page.locator("#slack li", has=page.locator(".message")).last


async def take_beginning(page: Page, file: Path) -> None:
    """A message from its title to the last command that fixes it, for README."""
    message = get_thread(page).locator(".message").first
    whole, last = await message.bounding_box(), await message.locator("pre").last.bounding_box()
    assert whole
    assert last
    height = last["y"] + last["height"] - whole["y"] + 4
    await page.screenshot(path=file, clip={"x": whole["x"], "y": whole["y"], "width": whole["width"], "height": height})


async def take(folder: Path, *, every: bool) -> None:
    """Writes slack-SCENE.png as a light, wide window shows it; or each of `every` scene, width and scheme."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark") if every else ("light",)
    async with run_chromium() as browser:
        for name in SCENES if every else COMMITTED:
            async with run_scene(name) as url:
                for size in SIZES if every else ("wide",):
                    for scheme in schemes:
                        ending = f"-{size}-{scheme}" if every else ""
                        async with open_page(browser, url, size, scheme) as page:
                            await get_thread(page).screenshot(path=folder / f"slack-{name}{ending}.png")
                            if name == "firing" and not every:
                                await take_beginning(page, folder / "slack-beginning.png")


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]) if sys.argv[1:] else IMAGES, every=bool(sys.argv[1:])))
