"""What a page is asked for everybody who reads it, by axe-core; focus, width; and texts that try to run."""

from typing import Any, Final

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

FOCUS = """() => {
  const node = document.activeElement;
  if (node === document.body) return ["", true];
  const style = getComputedStyle(node);
  return [node.id || node.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""

SCRIPT: Final = "<script>document.title='hacked'</script>"
IMAGE: Final = "<img src=x onerror=\"document.title='hacked'\">"
HOSTILE: Final = [
    SCRIPT,
    IMAGE,
    "<svg/onload=document.title='hacked'>",
    "<javascript:document.title='hacked'|click>",
    "<data:text/html,<script>document.title='hacked'</script>|click>",
    "<JaVaScRiPt:alert(1)>",
    "`</code><script>document.title='hacked'</script>`",
    '<https://example.org/"onmouseover="document.title=1|click>',
    "*" * 2000,
    "<" * 2000,
]


async def nothing_ran(page: Page) -> None:
    assert "hacked" not in await page.title()
    assert await page.locator("script").count() == 1  # our own
    assert await page.locator("[onerror], [onload], [onmouseover]").count() == 0
    schemes = await page.evaluate("[...document.links].map((a) => a.protocol)")
    assert set(schemes) <= {"http:", "https:"}


_AXE = Axe().axe_script
_VIOLATIONS = """async (runOnly) => {
  const found = await axe.run({runOnly, resultTypes: ["violations"], iframes: false});
  return found.violations.flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`));
}"""
WCAG: Final = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
"""What axe-core finds of WCAG 2.2 A and AA, and its best practices."""
COLOURS: Final = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
"""The rules of these that look at colours: in the other scheme nothing else is different."""


async def find_violations(page: Page, rules: dict[str, Any] = WCAG) -> list[str]:
    """What axe-core finds in this page, as it is now, with its style sheets."""
    await page.wait_for_load_state()
    # Evaluated by the debugger, so that the page's Content-Security-Policy stays as it is.
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_AXE)
    return list(await page.evaluate(_VIOLATIONS, rules))


async def check_accessibility(page: Page) -> None:
    """It is accessible in both schemes, and no wider than a small phone."""
    await page.emulate_media(color_scheme="dark")
    assert await find_violations(page, COLOURS) == [], "dark"
    await page.emulate_media(color_scheme="light")
    assert await find_violations(page) == [], "light"
    await page.set_viewport_size({"width": 320, "height": 640})
    assert not await find_overflow(page)
    await page.set_viewport_size({"width": 1280, "height": 800})


async def find_overflow(page: Page) -> bool:
    """Whether the page is wider than its window."""
    await page.wait_for_load_state()
    return bool(await page.evaluate("document.documentElement.scrollWidth > innerWidth"))
