"""What a page is asked for everybody who reads it: contrast, focus, width; and texts that try to run."""

from typing import Final, Literal

from playwright.async_api import Page

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")

CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if ((colour[3] ?? 1) === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.className, walker.currentNode.data]);
  }
  return found;
}"""

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
