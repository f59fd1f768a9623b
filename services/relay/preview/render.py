"""A payload of any channel as part of a page: Slack's post as Slack shows it, a mail, or JSON with its names.

It has classes and no style of its own, and loads nothing. A mail's HTML is a document of its own for a sandboxed frame:
`MAIL_POLICY` is its Content-Security-Policy.

A payload of any channel as a person sees it: text for a terminal, or a page.

A mail is what a mail program shows, Slack's post what Slack shows; other payloads are JSON, shown with their names.

A post's payload as Slack shows it: its blocks as terminal text, or as HTML.

https://docs.slack.dev/reference/block-kit/blocks

What channels would send for a webhook, were it the first of its incident. Nothing is sent, and nothing is stored.
"""

import asyncio
import base64
import email
import email.policy
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from markupsafe import Markup

from services.relay.config import RelaySettings
from services.relay.delivery.acknowledge_link import build_link
from services.relay.delivery.attempt import close_channel
from services.relay.delivery.enrichment import EnrichmentSettings, open_enricher
from services.relay.delivery.message import build_incident_url, build_links, remove_foreign_links
from services.relay.delivery.templates import MessageTemplates
from services.relay.intake.webhook import MalformedWebhookError, TooManyTextsError, parse_whole_event
from services.relay.model import DeliveryTask, Event, Message, build_incident_id, limit_size
from services.relay.text import is_resolved
from shared.process.logs import describe_exception

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
    if kind == "rich_text":
        lines = ("".join(map(_render_rich_element, section["elements"])) for section in block["elements"])
        return f'<div class="message-section">{"".join(f"<div>{line}</div>" for line in lines)}</div>'
    if kind not in _OF_TEXTS:
        return f"<pre>{escape(chr(10).join(_list_texts(block)))}</pre>"
    tag, name = _OF_TEXTS[kind]
    return "".join(f'<{tag} class="{name}">{_render_text(text)}</{tag}>' for text in _list_text_objects(block))


def _render_rich_element(element: Block) -> str:
    """A text or a link; what it says is no mark-up."""
    url, text = str(element.get("url", "")), escape(str(element.get("text", "")))
    shown = f'<a href="{escape(url)}">{text}</a>' if _is_link(url) else text
    return f"<b>{shown}</b>" if element.get("style", {}).get("bold") else shown


def _render_button(element: Block) -> str:
    label = _render_text(element.get("text", {}))
    url = unescape(str(element.get("url", "")))
    if not _is_link(url):
        return f'<span class="message-button" data-action="{escape(str(element.get("action_id", "")))}">{label}</span>'
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


_MAX_SECONDS: Final = 10.0
"""How long rendering one webhook for all channels may take."""
_MAX_WAITING: Final = 4
"""Webhooks that are rendered or wait for it; one is rendered at a time."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class RenderedPayload(NamedTuple):
    """What one channel would send."""

    channel: str
    kind: str
    payload: str | None = None
    """Credentials masked; None after a defect, which is in the log."""
    html: Markup = Markup()
    """The same as a person sees it, for a page; of a mail its text."""


class RenderingBusyError(Exception):
    """Too many webhooks are being rendered, or one takes too long; the message says what to do."""


class WebhookRenderer:
    """Renders webhooks for every channel, in a thread of its own and in bounded time. No request is made to anybody.

    Args:
        settings: the configuration.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: RelaySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        # They open a connection at their first send, and never send.
        self._channels = {name: each.connect(settings.delivery.timeout) for name, each in settings.channels.items()}
        self._templates = MessageTemplates(settings.messages.templates)
        self._thread = ThreadPoolExecutor(1, "render")
        self._waiting_count = 0

    async def render(self, body: bytes, *, only: str | None = None) -> list[RenderedPayload]:
        """The payload of each channel, without what Prometheus says now.

        Args:
            body: of the webhook.
            only: the name of one channel; None renders for all.

        Raises:
            ValueError: the body is no webhook of Alertmanager; the message says where.
            RenderingBusyError: try again, or a smaller one.
        """
        if self._waiting_count >= _MAX_WAITING:
            raise RenderingBusyError("others are being rendered; try again in a moment")
        self._waiting_count += 1
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                event = await self._run(partial(parse_event, body))
                message = build_preview_message(self._settings, "", event)
                message = await enrich(_get_runbook_files(self._settings), self._settings, message)
                ends = self._clock() + _MAX_SECONDS  # a thread cannot be cancelled
                names = [name for name in self._channels if only in {None, name}]
                return await self._run(lambda: [self._render_one(name, message, ends) for name in names])
        except TimeoutError:
            raise RenderingBusyError(f"it takes longer than {_MAX_SECONDS:g} s; try a smaller one") from None
        finally:
            self._waiting_count -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _render_one(self, name: str, message: Message, ends: float) -> RenderedPayload:
        if self._clock() > ends:
            raise TimeoutError
        own = self._settings.channels[name]
        message = replace(message, task=message.task._replace(channel=name))
        kind = str(getattr(own, "kind", ""))
        try:
            if own.uses_templates:
                message = self._templates.apply(message)[0]
            payload = self._channels[name].render_payload(_add_link(self._settings, message))
            return RenderedPayload(name, kind, payload, render_message(kind, payload))
        except Exception as error:  # noqa: BLE001  # the other channels are shown
            log.error("payload could not be rendered", channel=name, **describe_exception(error))  # noqa: TRY400
            return RenderedPayload(name, kind)


async def render_webhook(settings: RelaySettings, channel_name: str, body: bytes) -> str:
    """The payload of one channel, with what Prometheus says now. Raises ValueError, as `WebhookRenderer.render`."""
    event = parse_event(body)
    channel = settings.channels[channel_name].connect(settings.delivery.timeout)
    try:
        message = build_preview_message(settings, channel_name, event)
        if settings.channels[channel_name].uses_templates:
            with closing(MessageTemplates(settings.messages.templates)) as templates:
                message = (await asyncio.to_thread(templates.apply, message))[0]
        message = await enrich(settings.enrichment, settings, message)
        return await asyncio.to_thread(channel.render_payload, _add_link(settings, message))
    finally:
        await close_channel(channel_name, channel)


def parse_event(body: bytes) -> Event:
    """The event of a webhook. Raises ValueError, whose message says where and what was expected."""
    try:
        return limit_size(parse_whole_event(body, ""))
    except (MalformedWebhookError, TooManyTextsError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None


def build_preview_message(settings: RelaySettings, channel_name: str, event: Event) -> Message:
    """The message of an event, as delivery builds it."""
    now, rules = datetime.now(UTC), settings.link_rules
    event = remove_foreign_links(event, rules)
    task = DeliveryTask(
        delivery_id="0" * 32,
        incident_id=build_incident_id(event),
        episode=1,
        channel=channel_name,
        accepted_at=now,
    )
    links = tuple(build_links(alert, now, rules) for alert in event.alerts)
    return Message(
        task,
        event,
        links,
        settings.contacts,
        zone=settings.messages.zone,
        buttons=settings.buttons,
        incident_url=build_incident_url(task, rules),
    )


def _add_link(settings: RelaySettings, message: Message) -> Message:
    """The message with its link that acknowledges, where it has one; nobody signs it here."""
    public_url = settings.auth.public_url
    if public_url is None or is_resolved(message.event):
        return message
    if not settings.channels[message.task.channel].has_acknowledge_link:
        return message
    return replace(message, acknowledge_url=build_link(message).build_url(public_url, ""))


async def enrich(enrichment: EnrichmentSettings, settings: RelaySettings, message: Message) -> Message:
    """The message with its runbook excerpt and what Prometheus says now, as delivery adds them."""
    ends = asyncio.get_running_loop().time() + settings.delivery.timeout
    message = replace(message, task=message.task._replace(attempt_ends=ends))
    own = settings.channels.get(message.task.channel)
    async with open_enricher(enrichment, settings.messages.zone) as enricher:
        enriched, _ = await enricher.enrich(
            message,
            shows_values=own is not None and own.shows_values,
            shows_chart=own is not None and own.shows_chart,
        )
        return enriched


def _get_runbook_files(settings: RelaySettings) -> EnrichmentSettings:
    """Only what is read from this machine: a payload that somebody pastes must not make the relay ask a server."""
    runbook = settings.messages.runbook
    return EnrichmentSettings(
        runbook=runbook if isinstance(runbook, Path) else None, addresses=settings.enrichment.addresses
    )
