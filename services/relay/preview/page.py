"""A payload of any channel as a person sees it: text for a terminal, or a page.

A mail is what a mail program shows, Slack's post what Slack shows; other payloads are JSON, shown with their names.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from services.relay.preview.message import (
    HEADERS,
    embed_pictures,
    get_body,
    parse_lines,
    parse_mail,
    render_message,
)
from services.relay.preview.slack import format_blocks

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 44rem; margin: 1rem auto; padding: 0 1rem; font: 15px/1.47 -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }}
.message-header {{ font-size: 18px; font-weight: 700; }}
.message-section, .message-soft {{ margin: 8px 0; white-space: pre-line; }}
.message-text {{ white-space: pre-line; }}
pre {{ padding: 8px; border: 1px solid #8a919c55; border-radius: 4px; font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }}
.message-soft {{ font-size: 13px; opacity: .75; }}
.message-button {{ display: inline-block; margin: 0 4px 4px 0; padding: 4px 12px; border: 1px solid #8a919c88; border-radius: 4px; font-size: 14px; font-weight: 600; text-decoration: none; color: inherit; }}
dl {{ margin: 0; }} dt {{ font-size: 13px; opacity: .75; }} dd {{ margin: 0 0 6px; }} dd dl, dd ol {{ padding-left: 1rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""  # noqa: E501


def format_pretty(kind: str, payload: str) -> str:
    """The payload of a channel of that kind as text."""
    if kind == "email":
        mail = parse_mail(payload)
        head = "\n".join(f"{name}: {mail[name]}" for name in HEADERS)
        return f"{head}\n\n{get_body(mail, 'plain')}".replace("\r\n", "\n")
    if (values := parse_lines(kind, payload)) is None:
        return payload
    if kind == "slack":
        return "\n\n".join(map(format_blocks, values))
    return "\n\n".join("\n".join(_format_value(value, "")) for value in values)


def render_page(kind: str, payload: str) -> str:
    """The same as an HTML document."""
    if kind == "email":
        mail = parse_mail(payload)
        return embed_pictures(mail, get_body(mail, "html"))
    return _PAGE.format(title=escape(kind), body=render_message(kind, payload))


def _format_value(value: Any, indent: str) -> Iterator[str]:
    """Names and values, one a line; what a name holds stands indented below it."""
    children = value.items() if isinstance(value, Mapping) else (("-", each) for each in value)
    for name, child in children:
        start = f"{indent}{name}" if name == "-" else f"{indent}{name}:"
        if isinstance(child, (Mapping, list)):
            if child:
                yield start
                yield from _format_value(child, f"{indent}  ")
        elif str(child):
            first, *others = str(child).splitlines() or [""]
            yield f"{start} {first}".rstrip()
            yield from (f"{indent}  {line}" for line in others)
