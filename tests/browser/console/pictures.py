"""`python -m tests.browser.console.pictures [./FOLDER] [NAME…]` makes the pictures of the console in docs/images anew.

With a folder it writes every page there whole, wide and as on a phone, light and dark, to be looked at. With names it
makes these alone. Each scene is a console of its own.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from playwright.async_api import Browser, expect

from services.relay.outbox.store import open_store
from shared.sql.database_url import create_sqlite_url
from tests.browser.conftest import run_chromium
from tests.browser.console.channel_scene import ROUTES, build_channels, seed_checks
from tests.browser.console.delivery_scene import DELIVERY, open_deliveries, open_delivery
from tests.browser.console.incident_scene import find_path, open_past_night
from tests.browser.console.login_scene import open_audited, open_login
from tests.browser.console.month_scene import seed_month
from tests.browser.console.now_scene import open_bad_day
from tests.browser.console.proof_scene import open_proven
from tests.browser.console.quarantine_scene import seed_quarantine
from tests.browser.console.report_scene import EXPLAINED, open_routed_console
from tests.browser.console.served_console import Console, open_console, open_page
from tests.relay.outbox.seeded_history import seed_history

IMAGES: Final = Path(__file__).parents[3] / "docs/images"
_SIZES: Final = {"wide": (1280, 900), "phone": (390, 844)}


@asynccontextmanager
async def open_channels(folder: Path) -> AsyncIterator[Console]:
    """Channels that were checked for weeks."""
    await seed_checks(folder)
    async with open_console(folder, channels=build_channels(folder), routes=ROUTES) as console:
        yield console


@asynccontextmanager
async def open_month(folder: Path) -> AsyncIterator[Console]:
    """A month of incidents, and nothing of the console's own."""
    await seed_month(folder, time.time())
    async with open_console(folder) as console:
        yield console


@asynccontextmanager
async def open_quarantine(folder: Path) -> AsyncIterator[Console]:
    """Dead letters and refused webhooks."""
    async with open_console(folder) as console:
        await seed_quarantine(console, folder)
        yield console


@asynccontextmanager
async def open_seeded(folder: Path) -> AsyncIterator[Console]:
    """Some hundred incidents of six channels."""
    async with open_console(folder) as console:
        async with open_store(create_sqlite_url(folder / "relay.db"), time.time) as store:
            await seed_history(store, 3_000)
        yield console


SCENES: Final[dict[Callable[[Path], AbstractAsyncContextManager[Console]], dict[str, str]]] = {
    open_channels: {"console-channels": "/channels", "console-render": "/channels/-/render"},
    open_deliveries: {"console-deliveries": "/deliveries"},
    open_delivery: {"console-delivery": f"/deliveries/{DELIVERY}"},
    open_routed_console: {"console-routes": EXPLAINED},
    open_month: {"console-report": "/report"},
    open_quarantine: {"console-quarantine": "/quarantine"},
    open_bad_day: {"console-now": "/"},
    open_audited: {"console-audit": "/audit"},
    open_login: {"console-login": "/login"},
    open_seeded: {"console-incidents": "/incidents"},
    open_proven: {"console-proof": "/proof"},
    open_past_night: {"console-incident": find_path()},
}
"""Each picture, and the address of its page, by the console that it is of."""


async def take(folder: Path, *, every: bool, names: Collection[str]) -> None:
    """Writes the pictures, or `every` page in each size and scheme; of these names, or all."""
    async with run_chromium() as browser:
        for open_scene, pages in SCENES.items():
            wanted = {name: path for name, path in pages.items() if not names or name in names}
            if wanted:
                with tempfile.TemporaryDirectory() as scene:
                    async with open_scene(Path(scene)) as console:
                        for name, path in wanted.items():
                            await _take_page(browser, f"{console.url}{path}", folder / name, every=every)


async def _take_page(browser: Browser, address: str, file: Path, *, every: bool) -> None:
    for size, (width, height) in _SIZES.items() if every else [("wide", _SIZES["wide"])]:
        for scheme in ("light", "dark") if every else ("light",):
            is_live = not address.endswith("/login")
            async with open_page(browser, address, width=width, height=height, scheme=scheme, is_live=is_live) as page:
                await expect(page.locator("[aria-busy]")).to_have_count(0)
                for frame in await page.locator("iframe").all():
                    await frame.content_frame.locator("body *").first.wait_for()
                ending = f"-{size}-{scheme}" if every else ""
                await page.screenshot(path=file.with_name(f"{file.name}{ending}.png"), full_page=every)


if __name__ == "__main__":
    to = next((Path(each) for each in sys.argv[1:] if "/" in each), None)
    asyncio.run(take(to or IMAGES, every=to is not None, names=[each for each in sys.argv[1:] if "/" not in each]))
