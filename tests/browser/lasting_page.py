"""A page of Chromium that lasts: to make one takes twice as long as to load what a test looks at.

Each test finds it empty and without cookies, as a new one. Not for a test that installs a clock or adds a script of its
own, which nothing takes away again: that one opens its own page.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from playwright.async_api import Browser, ConsoleMessage, Dialog, Error, Page, Request

_pages: "WeakKeyDictionary[Browser, Page]" = WeakKeyDictionary()
_FORGET = "try { localStorage.clear(); sessionStorage.clear() } catch { /* an empty page has none */ }"


@asynccontextmanager
async def lasting_page(
    chromium: Browser,
    browser_errors: list[str],
    requested: list[str],
    *,
    width: int = 1280,
    height: int = 800,
    scheme: str = "light",
    reduced_motion: bool = False,
) -> AsyncIterator[Page]:
    """The page for one test; after one that fails, the next one gets a new page.

    Args:
        chromium: the browser.
        browser_errors: what the browser complains of is added to it: errors, violations of the policy, dialogs.
        requested: the address of each request is added to it.
        width: of the window.
        height: of the window.
        scheme: light or dark.
        reduced_motion: whether the reader asks for it.
    """
    page = _pages.pop(chromium, None) or await chromium.new_page()

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            browser_errors.append(f"{message.text} ({message.location['url']})")

    def on_error(error: Error) -> None:
        browser_errors.append(str(error))

    async def on_dialog(dialog: Dialog) -> None:
        browser_errors.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def on_request(request: Request) -> None:
        requested.append(request.url)

    handlers = {"console": on_console, "pageerror": on_error, "dialog": on_dialog, "request": on_request}
    for event, handler in handlers.items():
        page.on(event, handler)  # type: ignore[call-overload]
    is_clean = False
    try:
        await page.set_viewport_size({"width": width, "height": height})
        await page.emulate_media(
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce" if reduced_motion else "no-preference",
        )
        yield page
        await page.unroute_all()
        await page.context.set_offline(False)
        await page.context.clear_cookies()
        await page.evaluate(_FORGET)
        await page.mouse.move(0, 0)
        await page.goto("about:blank")
        is_clean = True
    finally:
        for event, handler in handlers.items():
            page.remove_listener(event, handler)
        if is_clean:
            _pages[chromium] = page
        else:
            await page.close()
