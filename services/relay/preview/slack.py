"""A post's payload as Slack shows it: its blocks as terminal text, or as HTML.

https://docs.slack.dev/reference/block-kit/blocks
"""

import re
from collections.abc import Iterator, Mapping
from html import escape, unescape
from typing import Any, Final

Block = Mapping[str, Any]
_OF_TEXTS: Final[Mapping[Any, tuple[str, str]]] = {
    "header": ("p", "message-header"),
    "section": ("div", "message-section"),
    "context": ("div", "message-soft"),
}
"""Blocks that hold text objects, each with its tag and class."""

_TOKEN: Final = re.compile(r"<([^<>]+)>")
_CODE: Final = re.compile(r"```(.+?)```|`([^`\n]+)`|\*([^*\n]+)\*", re.DOTALL)


def format_blocks(payload: Block) -> str:
    """The blocks as text, one below the other; the text alone where a payload has none."""
    blocks = _list_blocks(payload)
    return "\n".join(_format_block(block) for block in blocks) if blocks else _format_text(payload)


def render_blocks(payload: Block) -> str:
    """The same as HTML, for the body of a page."""
    blocks = _list_blocks(payload)
    return "\n".join(_render_block(block) for block in blocks) if blocks else f"<p>{_render_text(payload)}</p>"


def _list_blocks(payload: Block) -> list[Block]:
    """Those of the message, then those of its attachments."""
    blocks = list(payload.get("blocks") or ())
    for attachment in payload.get("attachments") or ():
        blocks += attachment.get("blocks") or ()
    return blocks


def _format_block(block: Block) -> str:
    kind = block.get("type")
    if kind == "divider":
        return "─" * 40
    if kind == "image":
        return f"[picture: {unescape(block.get('alt_text', ''))}]"
    if kind == "actions":
        return "  ".join(map(_format_button, block["elements"]))
    lines = "\n".join(map(_format_text, _list_text_objects(block)) if kind in _OF_TEXTS else _list_texts(block))
    return f"{lines}\n" if kind == "header" else lines


def _list_text_objects(block: Block) -> list[Block]:
    """Of a header, a section or a context."""
    text = [block["text"]] if "text" in block else []
    return [*text, *block.get("fields", ()), *block.get("elements", ())]


def _format_button(element: Block) -> str:
    label = f"[{_format_text(element.get('text', {}))}]"
    return f"{label}({unescape(element['url'])})" if "url" in element else label


def _format_text(text: Block) -> str:
    if text.get("type") == "plain_text":
        return unescape(str(text.get("text", "")))
    readable = "".join(f"{label} ({url})" if url else label for label, url in _split_tokens(str(text.get("text", ""))))
    return _CODE.sub(lambda found: (found[1] or found[2] or found[3]).strip("\n"), readable)


def _render_block(block: Block) -> str:
    kind = block.get("type")
    if kind == "divider":
        return "<hr>"
    if kind == "image":
        return f'<p class="message-soft">[picture: {escape(unescape(block.get("alt_text", "")))}]</p>'
    if kind == "actions":
        return f"<p>{' '.join(map(_render_button, block['elements']))}</p>"
    if kind not in _OF_TEXTS:
        return f"<pre>{escape(chr(10).join(_list_texts(block)))}</pre>"
    tag, name = _OF_TEXTS[kind]
    return "".join(f'<{tag} class="{name}">{_render_text(text)}</{tag}>' for text in _list_text_objects(block))


def _render_button(element: Block) -> str:
    label = _render_text(element.get("text", {}))
    url = unescape(str(element.get("url", "")))
    if not _is_link(url):
        return f'<span class="message-button">{label}</span>'
    return f'<a class="message-button" href="{escape(url)}">{label}</a>'


def _render_text(text: Block) -> str:
    if text.get("type") == "plain_text":
        return escape(unescape(str(text.get("text", ""))))
    parts = _split_tokens(str(text.get("text", "")))
    markup = "".join(
        f'<a href="{escape(url)}">{escape(label)}</a>' if url else escape(label, quote=False) for label, url in parts
    )
    return _CODE.sub(_render_code, markup)


def _render_code(found: re.Match[str]) -> str:
    if found[1]:
        return f"<pre>{found[1].strip(chr(10))}</pre>"
    return f"<code>{found[2]}</code>" if found[2] else f"<b>{found[3]}</b>"


def _split_tokens(mrkdwn: str) -> Iterator[tuple[str, str]]:
    """Each part of the text with its address, or without one.

    https://docs.slack.dev/messaging/formatting-message-text
    """
    for number, part in enumerate(_TOKEN.split(mrkdwn)):
        if number % 2 == 0:
            yield unescape(part), ""
            continue
        target, _, label = part.partition("|")
        if target.startswith("!date"):
            yield unescape(label), ""
        elif target[:1] in {"!", "@", "#"}:
            yield f"@{unescape(label or target.lstrip('!@#').removeprefix('subteam^'))}", ""
        else:
            yield unescape(label or target), unescape(target) if _is_link(target) else ""


def _is_link(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _list_texts(value: object) -> Iterator[str]:
    """Every text in a block of another type, such as `rich_text` and `table`."""
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), str):
            yield unescape(value["text"])
        for key, child in value.items():
            if key != "text" or not isinstance(child, str):
                yield from _list_texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _list_texts(child)
