"""A payload of any channel as a person sees it: text for a terminal, or a page.

A mail is what a mail program shows, Slack's post what Slack shows; other payloads are JSON, shown with their names.
"""

import base64
import email
import email.policy
import json
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from html import escape
from typing import Any, Final

from services.relay.preview.slack import format_blocks, render_blocks

_HEADERS: Final = ("From", "To", "Subject", "Date")
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 44rem; margin: 1rem auto; padding: 0 1rem; font: 15px/1.47 -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 18px; }}
.section, .soft {{ margin: 8px 0; white-space: pre-line; }}
pre {{ padding: 8px; border: 1px solid #8a919c55; border-radius: 4px; font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }}
.soft {{ font-size: 13px; opacity: .75; }}
.button {{ display: inline-block; margin: 0 4px 4px 0; padding: 4px 12px; border: 1px solid #8a919c88; border-radius: 4px; font-size: 14px; font-weight: 600; text-decoration: none; color: inherit; }}
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
        return _format_mail(_parse_mail(payload))
    if (values := _parse_lines(kind, payload)) is None:
        return payload
    if kind == "slack":
        return "\n\n".join(map(format_blocks, values))
    return "\n\n".join("\n".join(_format_value(value, "")) for value in values)


def render_page(kind: str, payload: str) -> str:
    """The same as an HTML document."""
    if kind == "email":
        mail = _parse_mail(payload)
        return embed_pictures(mail, _get_body(mail, "html"))
    if (values := _parse_lines(kind, payload)) is None:
        return _PAGE.format(title=escape(kind), body=f"<pre>{escape(payload)}</pre>")
    render = render_blocks if kind == "slack" else _render_value
    return _PAGE.format(title=escape(kind), body="\n<hr>\n".join(map(render, values)))


def _parse_lines(kind: str, payload: str) -> list[Any] | None:
    """The JSON of each line; None for a payload that is plain text."""
    try:
        values = [json.loads(line) for line in payload.splitlines()]
    except ValueError:
        return None
    return list(map(_arrange_event, values)) if kind == "pagerduty" else values


def _arrange_event(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What PagerDuty shows of an event, in its order."""
    payload = event.get("payload", {})
    return {
        "summary": payload.get("summary", event["event_action"]),
        "severity": payload.get("severity", ""),
        "action": event["event_action"],
        **{name: payload[name] for name in ("source", "component", "group", "class", "timestamp") if payload.get(name)},
        "details": payload.get("custom_details", {}),
        "links": {link["text"]: link["href"] for link in event.get("links", ())},
        "images": [image["src"] for image in event.get("images", ())],
        "open in": event.get("client_url", ""),
    }


def _parse_mail(payload: str) -> EmailMessage:
    mail = email.message_from_string(payload, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)  # noqa: S101  # the policy's own type
    return mail


def _format_mail(mail: EmailMessage) -> str:
    head = "\n".join(f"{name}: {mail[name]}" for name in _HEADERS)
    return f"{head}\n\n{_get_body(mail, 'plain')}".replace("\r\n", "\n")


def embed_pictures(mail: EmailMessage, page: str) -> str:
    """The HTML part of a mail with each picture in it, as a mail program shows it."""
    for part in mail.walk():
        if part.get_content_maintype() == "image" and part["Content-ID"]:
            data = base64.b64encode(part.get_payload(decode=True)).decode()  # type: ignore[arg-type]  # bytes, decoded
            page = page.replace(
                f"cid:{part['Content-ID'].strip('<>')}", f"data:{part.get_content_type()};base64,{data}"
            )
    return page


def _get_body(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    return str(body.get_content()) if body else ""


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


def _render_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"<dl>{''.join(f'<dt>{escape(str(k))}</dt><dd>{_render_value(v)}</dd>' for k, v in value.items())}</dl>"
    if isinstance(value, list):
        return f"<ol>{''.join(f'<li>{_render_value(child)}</li>' for child in value)}</ol>"
    return f'<span style="white-space: pre-line">{escape(str(value))}</span>'
