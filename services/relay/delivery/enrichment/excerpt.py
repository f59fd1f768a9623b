"""A runbook in Markdown → the first diagnosis steps of each of its sections, as plain text. Pure.

The document may come from a server, so nothing in it is trusted: mark-up and HTML are dropped, a link becomes text, and
each excerpt is short. Code is never cut, since half a command may do harm.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.relay.model import ExcerptBlock, RunbookExcerpt
from services.relay.text import clean_text, sanitize_url, truncate

MAX_BLOCKS: Final = 8
MAX_CHARACTERS: Final = 1_200
"""Of an excerpt."""
_MAX_PARAGRAPH: Final = 500
_MAX_SECTIONS: Final = 1_000
_MAX_INLINE: Final = 4 * _MAX_PARAGRAPH
"""Characters of a paragraph in which mark-up is looked for: that may take time by the square of their number."""
# With HTML, which thus becomes tokens of its own, and is dropped.
_BLOCKS: Final = MarkdownIt("commonmark").disable("inline")
_INLINE: Final = MarkdownIt("commonmark")
_NO_SLUG: Final = re.compile(r"[^\w\- ]")
_HTML_ANCHOR: Final = re.compile(r"<a\s+(?:id|name)=[\"']?([\w.-]+)")
_POINTER: Final = re.compile(r"(?!/|\w+:)([\w./-]+\.md)(?:#([\w.-]+))?")

ReadLinked = Callable[[str], str | None]
"""The text of another file of the runbook, by its path relative to this one; None if there is none."""


@dataclass(frozen=True, slots=True)
class _Heading:
    index: int
    """Of its first token."""
    level: int
    text: str
    anchors: tuple[str, ...]
    """In the HTML directly before it or within it."""


def build_excerpts(text: str, read_linked: ReadLinked = lambda _: None) -> dict[str, RunbookExcerpt]:
    """The excerpt of each section, by each name that leads to it, in lower case.

    These are the heading's anchor as GitHub makes it, an anchor of its own in HTML, and the heading's first word.

    Args:
        text: the document.
        read_linked: reads what a section that is no more than a link leads to.
    """
    tokens = _BLOCKS.parse(text)
    headings = list(islice(_list_headings(tokens), _MAX_SECTIONS))
    by_anchor: dict[str, RunbookExcerpt] = {}
    by_first_name: dict[str, RunbookExcerpt] = {}
    for heading in headings:
        excerpt = _excerpt_section(heading, headings, tokens, read_linked)
        if excerpt is None:
            continue
        for anchor in (_build_slug(heading.text), *heading.anchors):
            by_anchor.setdefault(anchor.lower(), excerpt)
        by_first_name.setdefault(heading.text.lower().partition(" ")[0], excerpt)
    return by_first_name | by_anchor


def find_excerpt(excerpts: Mapping[str, RunbookExcerpt], alertname: str) -> RunbookExcerpt | None:
    """The excerpt of an alert's section, whatever the case of its name."""
    return excerpts.get(alertname.lower()) or excerpts.get(_build_slug(alertname))


def _build_slug(heading: str) -> str:
    return _NO_SLUG.sub("", heading.lower()).replace(" ", "-")


def _list_headings(tokens: Sequence[Token]) -> Iterator[_Heading]:
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0:
            before = tokens[index - 1].content if index and tokens[index - 1].type in ("html_block", "inline") else ""
            before = tokens[index - 2].content if index > 1 and tokens[index - 1].type == "paragraph_close" else before
            inline = tokens[index + 1]
            anchors = _HTML_ANCHOR.findall(before + inline.content)
            yield _Heading(index, int(token.tag[1:]), _read_inline(inline), tuple(anchors))


def _excerpt_section(
    heading: _Heading, headings: Sequence[_Heading], tokens: Sequence[Token], read_linked: ReadLinked
) -> RunbookExcerpt | None:
    end = _find_end(heading, headings, len(tokens))
    inner = [each for each in headings if heading.index < each.index < end]
    diagnosis = next((each for each in inner if each.text.lower().startswith("diagnos")), None)
    if diagnosis is None:
        body = tokens[heading.index + 3 : end]
        if linked := _follow_pointer(body, heading.text, read_linked):
            return linked
    else:
        body = tokens[diagnosis.index + 3 : _find_end(diagnosis, headings, len(tokens))]
    blocks, is_truncated = _limit_blocks(list(_list_blocks(body)))
    return RunbookExcerpt(heading.text, blocks, is_truncated) if blocks else None


def _find_end(heading: _Heading, headings: Sequence[_Heading], end: int) -> int:
    return next((each.index for each in headings if each.index > heading.index and each.level <= heading.level), end)


def _follow_pointer(body: Sequence[Token], name: str, read_linked: ReadLinked) -> RunbookExcerpt | None:
    """The excerpt that a section leads to, if it is one paragraph with a link to another file of the runbook."""
    if [token.type for token in body] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    targets = [str(child.attrGet("href")) for child in _parse_inline(body[1]) if child.type == "link_open"]
    for match in filter(None, map(_POINTER.fullmatch, targets)):
        text = read_linked(match[1])
        if text is not None:
            found = build_excerpts(text)
            return find_excerpt(found, match[2] or name) or find_excerpt(found, name)
    return None


def _list_blocks(tokens: Sequence[Token]) -> Iterator[ExcerptBlock]:
    """The paragraphs, the items of lists and the code; headings, tables and HTML are left out."""
    item = ""  # the mark of the item that begins: its number, or a bullet
    for index, token in enumerate(tokens):
        match token.type:
            case "list_item_open":
                item = token.info or "•"
            case "fence" | "code_block":
                if text := clean_text(token.content):
                    yield ExcerptBlock("code", text)
            case "inline" if tokens[index - 1].type == "paragraph_open":
                if text := _read_inline(token):
                    bullet = "• " if item == "•" else ""
                    yield ExcerptBlock("step" if item and not bullet else "paragraph", bullet + text)
                item = ""


def _limit_blocks(blocks: Sequence[ExcerptBlock]) -> tuple[tuple[ExcerptBlock, ...], bool]:
    """As many as fit, and whether something is missing."""
    limited: list[ExcerptBlock] = []
    left = MAX_CHARACTERS
    for block in blocks[:MAX_BLOCKS]:
        fitting = block if block.kind == "code" else block._replace(text=truncate(block.text, _MAX_PARAGRAPH))
        left -= len(fitting.text)
        if left < 0:
            break
        limited.append(fitting)
    while limited and limited[-1].text.endswith(":") and len(limited) < len(blocks):
        limited.pop()  # what it announces is missing
    is_cut = any(block.kind != "code" and len(block.text) > _MAX_PARAGRAPH for block in blocks)
    return tuple(limited), is_cut or len(limited) < len(blocks)


def _read_inline(token: Token) -> str:
    """The text of a paragraph; a link to another place is `text (url)`."""
    parts: list[str] = []
    links: list[str] = []
    for child in _parse_inline(token):
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "image":
                parts.append(child.content)
            case "softbreak":
                parts.append(" ")
            case "hardbreak":
                parts.append("\n")
            case "link_open":
                links.append(sanitize_url(str(child.attrGet("href"))) or "")
            case "link_close":
                url = links.pop() if links else ""
                if url and not "".join(parts).endswith(url):
                    parts.append(f" ({url})")
    return clean_text("".join(parts))


def _parse_inline(token: Token) -> Sequence[Token]:
    return _INLINE.parseInline(token.content[:_MAX_INLINE])[0].children or ()
