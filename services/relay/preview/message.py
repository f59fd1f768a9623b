"""A payload of any channel as part of a page: Slack's post as Slack shows it, a mail, or JSON with its names.

It has classes and no style of its own, and loads nothing. A mail's HTML is a document of its own for a sandboxed frame:
`MAIL_POLICY` is its Content-Security-Policy.
"""

import base64
import email
import email.policy
import json
from collections.abc import Mapping
from email.message import EmailMessage
from html import escape
from typing import Any, Final

from markupsafe import Markup

from services.relay.preview.slack import render_blocks

HEADERS: Final = ("From", "To", "Subject", "Date")
"""What is shown of a mail's head."""
MAX_SIZE: Final = 200_000
"""Characters of a payload over which it is not rendered."""
MAIL_SANDBOX: Final = "allow-popups allow-popups-to-escape-sandbox"
"""What the frame of a mail may do: a link opens a page of its own. It runs no script."""
MAIL_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'self'; sandbox {MAIL_SANDBOX}"
)
"""Of the document alone that `render_mail` makes: mails have inline styles, as mail programs need them."""


def render_message(kind: str, payload: str) -> Markup:
    """The payload of a channel of that kind as HTML; of a mail its head and its plain text."""
    if len(payload) > MAX_SIZE:
        return Markup('<p class="message-soft">It is too large to be shown here.</p>')  # a constant
    if kind == "email":
        html = _render_mail_text(parse_mail(payload))
    elif (values := parse_lines(kind, payload)) is None:
        html = f"<pre>{escape(payload)}</pre>"
    else:
        html = "\n<hr>\n".join(map(render_blocks if kind == "slack" else _render_value, values))
    return Markup(html)  # noqa: S704  # every text in it is escaped


def render_mail(payload: str) -> str:
    """The HTML part of a mail as a document; its links open a page of their own."""
    mail = parse_mail(payload)
    return embed_pictures(mail, get_body(mail, "html").replace("<head>", '<head>\n<base target="_blank">', 1))


def parse_lines(kind: str, payload: str) -> list[Any] | None:
    """The JSON of each line; None for a payload that is plain text."""
    try:
        values = [json.loads(line) for line in payload.splitlines()]
    except ValueError:
        return None
    return list(map(_arrange_event, values)) if kind == "pagerduty" else values


def parse_mail(payload: str) -> EmailMessage:
    """The mail of a payload."""
    mail = email.message_from_string(payload, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)  # noqa: S101  # the policy's own type
    return mail


def get_body(mail: EmailMessage, kind: str) -> str:
    """The part of a mail that is `plain` or `html`; empty if there is none."""
    body = mail.get_body((kind,))
    return str(body.get_content()) if body else ""


def embed_pictures(mail: EmailMessage, page: str) -> str:
    """The HTML part of a mail with each picture in it, as a mail program shows it."""
    for part in mail.walk():
        if part.get_content_maintype() == "image" and part["Content-ID"]:
            data = base64.b64encode(part.get_payload(decode=True)).decode()  # type: ignore[arg-type]  # bytes, decoded
            page = page.replace(
                f"cid:{part['Content-ID'].strip('<>')}", f"data:{part.get_content_type()};base64,{data}"
            )
    return page


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


def _render_mail_text(mail: EmailMessage) -> str:
    head = "".join(f"<dt>{name}</dt><dd>{escape(str(mail[name] or ''))}</dd>" for name in HEADERS)
    return f"<dl>{head}</dl>\n<pre>{escape(get_body(mail, 'plain'))}</pre>"


def _render_value(value: Any) -> str:
    """Without what is empty."""
    if isinstance(value, Mapping):
        pairs = {escape(str(name)): _render_value(child) for name, child in value.items() if child not in ("", [], {})}
        return f"<dl>{''.join(f'<dt>{name}</dt><dd>{html}</dd>' for name, html in pairs.items())}</dl>"
    if isinstance(value, list):
        return f"<ol>{''.join(f'<li>{_render_value(child)}</li>' for child in value)}</ol>"
    return f'<span class="message-text">{escape(str(value))}</span>'
