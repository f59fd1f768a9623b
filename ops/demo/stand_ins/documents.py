"""A Markdown document → a page of ours, with the anchors that GitHub gives its headings. Pure."""

import re
from html import escape
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/page/icon.svg">
<link rel="stylesheet" href="/page/style.css">
<link rel="stylesheet" href="/page/document.css">
</head>
<body>
<header class="top"><a class="brand" href="/">keypulse <span>on call</span></a></header>
<main class="document">
{body}
</main>
</body>
</html>
"""


def render_markdown(markdown: str, parser: MarkdownIt) -> str:
    """The whole HTML page.

    Args:
        markdown: the document.
        parser: what reads it; its `html` option decides whether raw HTML passes (here it must not).
    """
    tokens = parser.parse(markdown)
    taken: dict[str, int] = {}
    title = "Document"
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            text = _extract_text(content)
            opening.attrSet("id", _build_anchor(text, taken))
            if opening.tag == "h1":
                title = text
    return build_page(title, parser.renderer.render(tokens, parser.options, {}))


def build_page(title: str, body: str) -> str:
    """A page of ours: `title` as text, `body` as HTML."""
    return _PAGE_TEMPLATE.format(title=escape(title), body=body)


def _extract_text(inline: Token) -> str:
    return "".join(part.content for part in inline.children or () if part.type in ("text", "code_inline"))


def _build_anchor(text: str, used_anchors: dict[str, int]) -> str:
    """Lower case, no punctuation, a hyphen for each space; a repeated one gets -1, -2, … (github-slugger's rule)."""
    slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    count = used_anchors.get(slug, 0)
    used_anchors[slug] = count + 1
    return f"{slug}-{count}" if count else slug
