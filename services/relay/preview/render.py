"""What channels would send for a webhook, and any payload as a person sees it: text for a terminal, HTML for a page.

A mail is what a mail program shows, Slack's post what Slack shows; other payloads are JSON, shown with their names, or
the texts in it where somebody else has added the kind. The HTML has classes and no style, and loads nothing. That of a
mail is a document for a sandboxed frame: `MAIL_POLICY` is its Content-Security-Policy.
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
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import cache, partial
from html import escape, unescape
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from markupsafe import Markup

from services.relay.config import RelaySettings
from services.relay.delivery.acknowledge_link import build_link
from services.relay.delivery.enrichment import EnrichmentSettings, open_enricher
from services.relay.delivery.message import build_incident_url, build_links, remove_foreign_links
from services.relay.delivery.templates import MessageTemplates
from services.relay.intake.webhook import MalformedWebhookError, TooManyTextsError, parse_whole_event
from services.relay.model import DeliveryTask, Event, Message, build_incident_id, limit_size
from services.relay.text import is_resolved
from shared.http.json_api import RefusedError
from shared.process.logs import describe_exception

HEADERS: Final = ("From", "To", "Subject", "Date")
"""What is shown of a mail's head."""
MAX_SIZE: Final = 200_000
"""Characters of a payload over which it is not rendered."""
MAIL_SANDBOX: Final = "allow-popups allow-popups-to-escape-sandbox"
"""What the frame of a mail may do: a link opens a new page. It runs no script."""
MAIL_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'self'; sandbox {MAIL_SANDBOX}"
)
"""Of the document alone that `render_mail` makes: mails have inline styles, as mail programs need them."""
_NAMED_KINDS: Final = {"pagerduty", "webhook", "log"}
"""Whose JSON has names for people."""
_TEXT_KEYS: Final = ("title", "text", "value", "url")
"""What holds a text in the cards of chat services."""

Block = Mapping[str, Any]
_OF_TEXTS: Final[Mapping[Any, tuple[str, str]]] = {
    "header": ("p", "message-header"),
    "section": ("div", "message-section"),
    "context": ("div", "message-soft"),
}
"""Slack's blocks that hold text objects, each with its tag and class."""
_TOKEN: Final = re.compile(r"<([^<>]+)>")
_CODE: Final = re.compile(r"```(.+?)```|`([^`\n]+)`|\*([^*\n]+)\*", re.DOTALL)


class _Span(NamedTuple):
    text: str
    url: str = ""
    tag: str = ""
    """Of its HTML, such as `b`."""
    action: str = ""
    """What a button does."""


class _Line(NamedTuple):
    """A line of a message, as Slack shows it."""

    spans: list[_Span]
    tag: str = "p"
    css: str = ""

    def format(self) -> str:
        if self.tag == "hr":
            return "─" * 40
        if self.css == "buttons":
            return "  ".join(f"[{text}]({url})" if url else f"[{text}]" for text, url, *_ in self.spans)
        text = "".join(f"{text} ({url})" if url else text for text, url, *_ in self.spans)
        return f"{text}\n" if self.css == "message-header" else text

    def render(self) -> str:
        if self.tag == "hr":
            return "<hr>"
        is_buttons = self.css == "buttons"
        css = f' class="{self.css}"' if self.css and not is_buttons else ""
        spans = (" " if is_buttons else "").join(_render_span(span, is_button=is_buttons) for span in self.spans)
        return f"<{self.tag}{css}>{spans}</{self.tag}>"


def _render_span(span: _Span, *, is_button: bool) -> str:
    css, text = ' class="message-button"' if is_button else "", escape(span.text)
    if span.url:
        text = f'<a{css} href="{escape(span.url)}">{text}</a>'
    elif is_button:
        text = f'<span{css} data-action="{escape(span.action)}">{text}</span>'
    return f"<{span.tag}>{text}</{span.tag}>" if span.tag else text


def _list_texts_of_block(block: Block) -> list[list[_Span]]:
    texts = [*([block["text"]] if "text" in block else []), *block.get("fields", ()), *block.get("elements", ())]
    parsed = list(map(_parse_text, texts))
    if block["type"] != "context":
        return parsed
    return [[span for text in parsed for span in (*text, _Span("  "))][:-1]]  # Slack shows them side by side


def _list_lines(payload: Block) -> Iterator[_Line]:
    """The blocks of a post and of its attachments; its text alone where it has none.

    https://docs.slack.dev/reference/block-kit/blocks
    """
    blocks = list(payload.get("blocks") or ())
    for attachment in payload.get("attachments") or ():
        blocks += attachment.get("blocks") or ()
    if not blocks:
        yield _Line(_parse_text(payload))
    for block in blocks:
        kind = block.get("type")
        if kind == "divider":
            yield _Line([], "hr")
        elif kind == "image":
            yield _Line([_Span(f"[picture: {unescape(block.get('alt_text', ''))}]")], css="message-soft")
        elif kind == "actions":
            yield _Line(list(map(_parse_button, block["elements"])), css="buttons")
        elif kind in _OF_TEXTS:
            yield from (_Line(spans, *_OF_TEXTS[kind]) for spans in _list_texts_of_block(block))
        elif kind == "rich_text":
            for section in block["elements"]:
                yield _Line(list(map(_parse_rich_element, section["elements"])), "div", "message-section")
        else:
            yield _Line([_Span("\n".join(map(unescape, _list_texts(block, ("text",)))))], "pre")


def _parse_button(element: Block) -> _Span:
    url, label = unescape(str(element.get("url", ""))), _parse_text(element.get("text", {}))
    action = str(element.get("action_id", ""))
    return _Span("".join(span.text for span in label), url if _is_link(url) else "", action=action)


def _parse_rich_element(element: Block) -> _Span:
    """A text or a link; what it says is no mark-up."""
    url, style = str(element.get("url", "")), element.get("style", {})
    return _Span(str(element.get("text", "")), url if _is_link(url) else "", "b" if style.get("bold") else "")


def _parse_text(text: Block) -> list[_Span]:
    """The pieces of a text object, of mark-up with their tags."""
    raw = str(text.get("text", ""))
    if text.get("type") == "plain_text":
        return [_Span(unescape(raw))]
    spans, end = list[_Span](), 0
    for found in _CODE.finditer(raw):
        tag = "pre" if found[1] else "code" if found[2] else "b"
        inner = (found[1] or found[2] or found[3]).strip("\n")
        spans += [*_split_tokens(raw[end : found.start()]), *(each._replace(tag=tag) for each in _split_tokens(inner))]
        end = found.end()
    return [*spans, *_split_tokens(raw[end:])]


def _split_tokens(mrkdwn: str) -> Iterator[_Span]:
    """Each part of the text, a link with its address: https://docs.slack.dev/messaging/formatting-message-text."""
    for number, part in enumerate(_TOKEN.split(mrkdwn)):
        target, _, label = part.partition("|")
        if number % 2 == 0:
            yield _Span(unescape(part))
        elif target.startswith("!date"):
            yield _Span(unescape(label))
        elif target[:1] in {"!", "@", "#"}:
            yield _Span(f"@{unescape(label or target.lstrip('!@#').removeprefix('subteam^'))}")
        else:
            yield _Span(unescape(label or target), unescape(target) if _is_link(target) else "")


def _is_link(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _list_texts(value: object, keys: tuple[str, ...]) -> Iterator[str]:
    """Every text that stands under one of these keys, at any depth."""
    if isinstance(value, Mapping):
        yield from (value[key] for key in keys if isinstance(value.get(key), str))
        for key, child in value.items():
            if key not in keys or not isinstance(child, str):
                yield from _list_texts(child, keys)
    elif isinstance(value, list):
        for child in value:
            yield from _list_texts(child, keys)


def format_pretty(kind: str, payload: str) -> str:
    """The payload of a channel of that kind as text."""
    if kind == "email":
        mail = _parse_mail(payload)
        head = "\n".join(f"{name}: {mail[name]}" for name in HEADERS)
        return f"{head}\n\n{_get_body(mail, 'plain')}".replace("\r\n", "\n")
    values = _parse_lines(kind, payload)
    if values is None:
        return payload
    if kind == "slack":
        return "\n\n".join("\n".join(line.format() for line in _list_lines(value)) for value in values)
    return "\n\n".join("\n".join(_format_value(value, "")) for value in values)


def render_message(kind: str, payload: str) -> Markup:
    """The payload of a channel of that kind as HTML; of a mail its head and its plain text."""
    if len(payload) > MAX_SIZE:
        return Markup('<p class="message-soft">It is too large to be shown here.</p>')  # a constant
    values = None if kind == "email" else _parse_lines(kind, payload)
    if kind == "email":
        mail = _parse_mail(payload)
        head = "".join(f"<dt>{name}</dt><dd>{escape(str(mail[name] or ''))}</dd>" for name in HEADERS)
        html = f"<dl>{head}</dl>\n<pre>{escape(_get_body(mail, 'plain'))}</pre>"
    elif values is None:
        html = f"<pre>{escape(payload)}</pre>"
    elif kind == "slack":
        html = "\n<hr>\n".join("\n".join(line.render() for line in _list_lines(value)) for value in values)
    else:
        html = "\n<hr>\n".join(map(_render_value, values))
    return Markup(html)  # noqa: S704  # every text in it is escaped


def render_mail(payload: str) -> str:
    """The HTML part of a mail as a document; its links open a page of their own."""
    return _embed_pictures(payload).replace("<head>", '<head>\n<base target="_blank">', 1)


@cache
def _load_page() -> Template:
    return Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def render_page(kind: str, payload: str) -> str:
    return (
        _embed_pictures(payload)
        if kind == "email"
        else _load_page().substitute(title=escape(kind), body=render_message(kind, payload))
    )


def _parse_lines(kind: str, payload: str) -> list[Any] | None:
    """What is shown of the JSON of each line; None for a payload that is plain text."""
    try:
        values = [json.loads(line) for line in payload.splitlines()]
    except ValueError:
        return None
    if not all(isinstance(value, (dict, list)) for value in values):
        return None
    if kind == "pagerduty":
        return list(map(_arrange_event, values))
    if kind in _NAMED_KINDS or kind == "slack":
        return values
    return [list(_list_texts(value, _TEXT_KEYS)) or value for value in values]


def _parse_mail(payload: str) -> EmailMessage:
    mail = email.message_from_string(payload, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)  # noqa: S101  # the policy's own type
    return mail


def _get_body(mail: EmailMessage, kind: str) -> str:
    """The part of a mail that is `plain` or `html`; empty if there is none."""
    body = mail.get_body((kind,))
    return str(body.get_content()) if body else ""


def _embed_pictures(payload: str) -> str:
    mail = _parse_mail(payload)
    return embed_pictures(mail, _get_body(mail, "html"))


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


def _render_value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = {escape(str(name)): _render_value(child) for name, child in value.items() if child not in ("", [], {})}
        return f"<dl>{''.join(f'<dt>{name}</dt><dd>{html}</dd>' for name, html in pairs.items())}</dl>"
    if isinstance(value, list):
        return f"<ol>{''.join(f'<li>{_render_value(child)}</li>' for child in value)}</ol>"
    return f'<span class="message-text">{escape(str(value))}</span>'


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


class RenderingBusyError(RefusedError):
    """Too many webhooks are being rendered, or one takes too long; the message says what to do."""

    status = 503


class WebhookRenderer:
    """Renders webhooks for every channel, were each the first of its incident, in a thread and in bounded time.

    Nothing is sent, and nothing is stored.

    Args:
        settings: the configuration.
        clock: seconds, monotonic.
        asks_servers: whether a runbook's server and Prometheus are asked; a payload that somebody pastes must not make
            the relay do that.
    """

    def __init__(
        self, settings: RelaySettings, clock: Callable[[], float] = time.monotonic, *, asks_servers: bool = False
    ) -> None:
        self._settings = settings
        self._clock = clock
        runbook = settings.messages.runbook
        own_files = EnrichmentSettings(
            runbook=runbook if isinstance(runbook, Path) else None, addresses=settings.enrichment.addresses
        )
        self._enrichment = settings.enrichment if asks_servers else own_files
        # They open a connection at their first send, and never send: there is nothing to close.
        self._channels = {name: each.connect(settings.delivery.timeout) for name, each in settings.channels.items()}
        self._templates = MessageTemplates(settings.messages.templates)
        self._thread = ThreadPoolExecutor(1, "render")
        self._waiting_count = 0

    async def render(self, body: bytes, *, only: str | None = None) -> list[RenderedPayload]:
        """The payload of each channel, or of one.

        Raises:
            ValueError: the body is no webhook of Alertmanager; the message says where, and what was expected.
            RenderingBusyError: try again, or a smaller one.
        """
        if self._waiting_count >= _MAX_WAITING:
            raise RenderingBusyError("others are being rendered; try again in a moment")
        self._waiting_count += 1
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                event = await self._run(partial(_parse_event, body))
                message = await self._enrich(self._build_message(event, only or ""))
                ends = self._clock() + _MAX_SECONDS  # a thread cannot be cancelled
                names = [name for name in self._channels if only in {None, name}]
                return await self._run(lambda: [self._render_one(name, message, ends) for name in names])
        except TimeoutError:
            raise RenderingBusyError(f"it takes longer than {_MAX_SECONDS:g} s; try a smaller one") from None
        finally:
            self._waiting_count -= 1

    async def close(self) -> None:
        await self._run(self._templates.close)
        self._thread.shutdown(wait=False)

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
            payload = self._channels[name].render_payload(self._add_link(message))
            return RenderedPayload(name, kind, payload, render_message(kind, payload))
        except Exception as error:  # noqa: BLE001  # the other channels are shown
            log.error("payload could not be rendered", channel=name, **describe_exception(error))  # noqa: TRY400
            return RenderedPayload(name, kind)

    def _build_message(self, event: Event, channel: str) -> Message:
        now, settings = datetime.now(UTC), self._settings
        rules = settings.link_rules
        event = remove_foreign_links(event, rules)
        ends = asyncio.get_running_loop().time() + settings.delivery.timeout
        task = DeliveryTask("0" * 32, build_incident_id(event), 1, channel, now, attempt_ends=ends)
        return Message(
            task,
            event,
            tuple(build_links(alert, now, rules) for alert in event.alerts),
            settings.contacts,
            zone=settings.messages.zone,
            buttons=settings.buttons,
            incident_url=build_incident_url(task, rules),
        )

    async def _enrich(self, message: Message) -> Message:
        own = self._settings.channels.get(message.task.channel)
        values, chart = (own.shows_values, own.shows_chart) if own else (False, False)
        async with open_enricher(self._enrichment, self._settings.messages.zone) as enricher:
            return (await enricher.enrich(message, shows_values=values, shows_chart=chart))[0]

    def _add_link(self, message: Message) -> Message:
        """The message with its link that acknowledges, where it has one; nobody signs it here."""
        public_url, own = self._settings.auth.public_url, self._settings.channels[message.task.channel]
        if public_url is None or is_resolved(message.event) or not own.has_acknowledge_link:
            return message
        return replace(message, acknowledge_url=build_link(message).build_url(public_url, ""))


def _parse_event(body: bytes) -> Event:
    try:
        return limit_size(parse_whole_event(body, ""))
    except (MalformedWebhookError, TooManyTextsError) as error:
        raise ValueError(f"expected a webhook of Alertmanager: {error}") from None
