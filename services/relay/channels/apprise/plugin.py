"""Apprise itself: the plugin of a URL, the text that it gets, and its requests, sent by the relay's own HTTP session.

Apprise by itself follows a redirect and reports success, loses the status and `Retry-After`, keeps no lease, and goes
on in its thread after a time-out. Here a plugin runs in a thread, but each request that it makes by `requests` is sent
in the event loop: with the lease, the proxy, the authorities, the resolver and the limits of every other channel. It
ends with the attempt: a thread that goes on can send nothing more.

Everything of an alert is escaped. What could mention somebody or hide a link's address is made harmless as well, since
some services find mentions in plain text, and show mark-up in titles.

Imported only where a channel needs it: Apprise is an extra, and takes 45 MB of memory.
"""

import asyncio
import contextvars
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import apprise
import requests
from apprise.conversion import convert_between
from apprise.plugins.discord import NotifyDiscord
from apprise.plugins.fluxer import NotifyFluxer
from apprise.utils.parse import parse_urls
from yarl import URL

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import ProviderCall, build_status_error, list_url_secrets, mask_reply
from services.relay.http import HttpSession, read_text, translate_connection_errors
from services.relay.model import Alert, Message, RunbookExcerpt, Status
from services.relay.text import (
    AlertCard,
    AlertTable,
    Fix,
    Link,
    Severity,
    build_view,
    find_worst_severity,
    fit,
    format_digest,
    format_digest_title,
    format_more,
    is_resolved,
    limit_labels,
    sanitize_url,
    select_alerts,
    truncate,
)
from shared.config.file_checks import FileCheckError
from shared.config.settings import check_secret_url
from shared.process.concurrency import start_in_thread

MAX_BODY: Final = 4_000
"""Characters of a body, or as many as the service takes, if those are fewer."""
MAX_TITLE: Final = 250
_RESERVED: Final = 40
"""Characters of the body kept for how many alerts are missing."""
_MAX_CARDS: Final = 20
_MAX_TABLES: Final = 5
_MAX_ROWS: Final = 20
_MAX_FIXES: Final = 2
_MAX_LABELS: Final = 6
_MAX_LABEL: Final = 80
_TO_ALL: Final = r"everyone|here|channel|room|all\b|&?\d"
"""What is a mention after @ even within a word, as in `ops@everyone`: Discord and Apprise look no further."""
_MARKUP: Final = re.compile(rf"(?<![A-Za-z0-9_])@(?=\w)|@(?=(?i:{_TO_ALL}))|<(?=\S)|\](?=\()")
"""How a mention or a link begins, whichever the service: @name, <@U012>, <at>name</at>, [name](…); no mail address."""
_MENTION_IN_CODE: Final = re.compile(rf"@(?=(?i:{_TO_ALL}))")
_INVISIBLE_SPACE: Final = "\u200b"
_INLINE: Final = re.compile(r"[\\`*_\[\]<>~|&#]")
_LINE_START: Final = re.compile(r"^(\s*\d*)([-+=.)])")
"""Of a list, or under a heading."""


class Text(NamedTuple):
    """A message as Apprise gets it."""

    title: str
    body: str
    is_markdown: bool

    @property
    def payload(self) -> str:
        return f"{self.title}\n\n{self.body}"


class _Form(NamedTuple):
    """One of the forms of a part."""

    text: str
    """Empty where there is nothing to say."""
    alerts: Sequence[Alert] = ()
    """Shown in it."""


class _Part(NamedTuple):
    """A part of a body: it stands after those of the same or a lower position."""

    position: int
    forms: Sequence[_Form]
    """The fullest first."""


def build_text(
    message: Message,
    *,
    measure: Callable[[str], int] = len,
    limit: int = MAX_BODY,
    title_limit: int = MAX_TITLE,
    is_markdown: bool = False,
    escapes_title: bool = False,
) -> Text:
    """The message as text: the first alert always, the others as far as they fit whole, and how many do not.

    Args:
        message: to be sent.
        measure: the length of a text once Apprise has turned it into what the service gets.
        limit: of the body's length.
        title_limit: characters of the title.
        is_markdown: whether the body is Markdown, or plain text.
        escapes_title: whether the title is, too.
    """
    limit, write = min(limit, MAX_BODY), partial(_write, is_markdown=is_markdown)
    view = build_view(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS)
    title = truncate(_disarm(format_digest_title(message) if message.digest else view.subject), title_limit)
    title = _escape_markdown(title) if escapes_title else title
    if message.digest:
        return Text(title, _write_digest(message, measure, limit, write), is_markdown)
    head = " · ".join(filter(None, (view.headline, view.counts, view.severity)))
    contacts = [f"{role}: {address}" for role, address in view.contacts.items()]
    first, *others = [_list_forms(part, write) for part in view.parts] or [[]]
    fixes = (_write_fix(fix, is_markdown=is_markdown) for fix in view.fixes[:_MAX_FIXES])
    parts = [
        _Part(0, [_Form(write(head, view.remark, links=view.incident_links))]),
        _Part(0, first),
        *(_Part(0, [_Form(fix)]) for fix in fixes),
        _Part(1, [_Form(write("Escalate to", *contacts) if contacts else "")]),
        _Part(2, [_Form(write(*map(str, view.context)))]),
        *(_Part(0, forms) for forms in others),
    ]
    shown, left = _fit_parts(parts, limit - _RESERVED, measure)
    listed = {id(alert) for part in shown for alert in part.forms[0].alerts}
    left_out = format_more([alert for alert in message.event.alerts if id(alert) not in listed])
    rest = [
        _Part(0, [_Form(write(left_out, view.omission))]),
        _Part(3, [_Form(_write_excerpt(view.excerpt, write, is_markdown=is_markdown))]),
        _Part(4, [_Form(write(links=view.group_links))]),
    ]
    shown += _fit_parts(rest, left + _RESERVED, measure)[0]
    blocks = [part.forms[0].text for part in sorted(shown, key=itemgetter(0)) if part.forms[0].text]
    while measure("\n\n".join(blocks)) > limit:  # all together may be longer than one by one
        blocks.pop()
    return Text(title, "\n\n".join(blocks), is_markdown)


def _fit_parts(parts: Sequence[_Part], limit: int, measure: Callable[[str], int]) -> tuple[list[_Part], int]:
    """The parts that fit, each with the one form that does, and what is left of the limit."""

    def measure_form(form: _Form) -> int:
        return measure(form.text) + 2 if form.text else 0

    forms = fit((part.forms for part in parts), (limit, measure_form))
    shown = [_Part(part.position, [form]) for part, form in zip(parts, forms, strict=True) if form is not None]
    return shown, limit - sum(measure_form(part.forms[0]) for part in shown)


def _write_digest(message: Message, measure: Callable[[str], int], limit: int, write: "partial[str]") -> str:
    """Every incident on a line, as far as they fit; a line that is an address is a link."""
    text, space, end = "", limit, "  \n" if write.keywords["is_markdown"] else "\n"
    while space:
        text = end.join(
            write(links=[Link("Details", url)]) if (url := sanitize_url(line)) else write(line)
            for line in format_digest(message, space).split("\n")
        )
        if measure(text) <= limit:
            break
        space = space * 9 // 10  # mark-up takes some of it
    return text


def _list_forms(part: AlertCard | AlertTable, write: Callable[..., str]) -> list[_Form]:
    return list(_list_table_forms(part, write) if isinstance(part, AlertTable) else _list_card_forms(part, write))


def _list_card_forms(card: AlertCard, write: Callable[..., str]) -> Iterator[_Form]:
    shown, now = [card.alert], f"now {card.value}" if card.value and card.alert.status is Status.FIRING else ""
    labels = ", ".join(f"{key}={value}" for key, value in limit_labels(card.labels, _MAX_LABELS, _MAX_LABEL))
    yield _Form(write(card.summary, labels, card.description, card.period, now, links=card.links), shown)
    yield _Form(write(card.summary, labels, card.period, now, links=card.links), shown)
    for length in (250, 100):
        yield _Form(write(truncate(card.summary, length), card.period, links=card.links[:1]), shown)
    for length in (250, 100, 40):
        yield _Form(write(truncate(card.summary, length)), shown)


def _list_table_forms(table: AlertTable, write: Callable[..., str]) -> Iterator[_Form]:
    for count in (_MAX_ROWS, 10, 5, 2):
        listed = set(map(id, select_alerts(table.alerts, count)[0]))
        pairs = [pair for pair in zip(table.alerts, table.rows, strict=True) if id(pair[0]) in listed]
        lines = (f"• {' · '.join(filter(None, row))}" for _, row in pairs)
        yield _Form(write(table.caption, *lines, links=table.links), [alert for alert, _ in pairs])
    for length in (250, 100, 40):
        yield _Form(write(truncate(table.caption, length)))


def _write_fix(fix: Fix, *, is_markdown: bool) -> str:
    title = _escape_markdown(fix.title) if is_markdown else fix.title
    return f"{title}:\n{_write_code(fix.command, is_markdown=is_markdown)}"


def _write_excerpt(excerpt: RunbookExcerpt | None, write: Callable[..., str], *, is_markdown: bool) -> str:
    if excerpt is None:
        return ""
    blocks = (
        _write_code(block.text, is_markdown=is_markdown) if block.kind == "code" else write(block.text)
        for block in excerpt.blocks
    )
    return "\n\n".join([write("From the runbook"), *blocks])


def _write_code(code: str, *, is_markdown: bool) -> str:
    """As it is to be pasted: an invisible space would break it, and two quotes are nothing to a shell."""
    code = _MENTION_IN_CODE.sub('@""', code)
    return f"\n````\n{code}\n````" if is_markdown else code


def _write(*texts: str, links: Sequence[Link] = (), is_markdown: bool) -> str:
    """Lines of text of others, then links; empty texts are left out."""
    lines = [line for text in texts for line in _disarm(text).splitlines() if line]
    addresses = [link.url.replace("@", "%40") for link in links]
    if not is_markdown:
        return "\n".join([*lines, *(f"{link.text}: {url}" for link, url in zip(links, addresses, strict=True))])
    link_texts = [
        f"[{link.text}]({url.replace('(', '%28').replace(')', '%29')})"
        for link, url in zip(links, addresses, strict=True)
    ]
    return "  \n".join([*map(_escape_markdown, lines), *([" · ".join(link_texts)] if link_texts else [])])


def _escape_markdown(text: str) -> str:
    """A line as CommonMark that shows it as it is: https://spec.commonmark.org/0.31.2/#backslash-escapes."""
    return _LINE_START.sub(r"\1\\\2", _INLINE.sub(r"\\\g<0>", text))


def _disarm(text: str) -> str:
    """The text with an invisible space where a mention or a link would begin."""
    return _MARKUP.sub(lambda found: found[0] + _INVISIBLE_SPACE, text)


SERVICE: Final = "the service"
_OWN_HEADERS: Final = {"accept-encoding", "connection", "content-length", "host", "transfer-encoding"}
"""What the session itself decides."""
_ONE_EACH: Final = "give each its own channel, so that each has its receipts"


def create_plugin(url: str) -> apprise.NotifyBase:
    """Apprise's plugin for a URL. Raises FileCheckError, which does not repeat it."""
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its log holds bodies, and URLs that it cannot read
    if len(parse_urls(url)) > 1:  # type: ignore[no-untyped-call]
        raise FileCheckError("expected one Apprise URL", _ONE_EACH)
    asset = apprise.AppriseAsset(app_id="keypulse", app_desc="keypulse", app_url="", interpret_emojis=False)
    plugin = apprise.Apprise.instantiate(url, asset=asset)
    if plugin is None:
        raise FileCheckError(
            "expected the Apprise URL of a service, such as tgram://TOKEN/CHAT", "see https://appriseit.com/services/"
        )
    modules = (each.__module__ for each in type(plugin).__mro__)
    if not any(
        hasattr(sys.modules[name], "requests")
        for name in modules
        if name.startswith("apprise.plugins.") and name != "apprise.plugins.base"
    ):
        raise FileCheckError("expected a service that Apprise reaches by HTTP", "for mail there is `kind: email`")
    plugin.retry = 0  # delivery retries, and counts
    if len(plugin) > 1:
        raise FileCheckError("expected one destination", _ONE_EACH)
    plugin.request_rate_per_sec = 0  # it would sleep; the channel has a rate
    _ignore_mentions_in_texts(plugin)
    return plugin


def _ignore_mentions_in_texts(plugin: apprise.NotifyBase) -> None:
    """Of Discord and its like: mentioned is whom the URL names, and nobody who stands in a text."""
    if isinstance(plugin, (NotifyDiscord, NotifyFluxer)):
        build_mentions, ping = plugin.ping_payload, " ".join(plugin.ping)
        plugin.ping_payload = lambda *_texts: build_mentions(ping)  # type: ignore[method-assign]


def notify(plugin: apprise.NotifyBase, message: Message, text: Text) -> bool:
    """Has the plugin make its requests; whether it takes the answers for a success. Blocks."""
    event = message.event
    urgent = find_worst_severity(event) not in {Severity.WARNING, Severity.INFO}
    is_accepted: bool = plugin.notify(
        title=text.title,
        body=text.body,
        notify_type="success" if is_resolved(event) else "failure" if urgent else "warning",
        body_format="markdown" if text.is_markdown else "text",
        overflow="truncate",
    )
    return is_accepted


def build_for(plugin: apprise.NotifyBase, message: Message) -> Text:
    """The text for a service, within its limits and with the mark-up that it has."""
    markup = plugin.resolve_format()
    is_markdown = markup != "text"
    title_limit = plugin.title_maxlen or MAX_TITLE
    return build_text(
        message,
        measure=lambda text: len(convert_between("markdown" if is_markdown else "text", markup, text)),  # type: ignore[no-untyped-call]
        limit=plugin.body_maxlen - (0 if plugin.title_maxlen else 2 * title_limit),  # where the title is in the body
        title_limit=title_limit,
        is_markdown=is_markdown,
        escapes_title=is_markdown and not plugin.title_maxlen,
    )


class PluginRequests:
    """The requests that a plugin makes for one message.

    Args:
        session: what sends them.
        call: the attempt.
        payload: what is recorded of the message.
        url: of the destination, whose parts are secrets.
        clock: unix seconds.
        allow_remote_insecure: accepts an http URL of another machine.
    """

    def __init__(
        self,
        session: HttpSession,
        call: ProviderCall,
        payload: str,
        url: str,
        clock: Callable[[], float],
        *,
        allow_remote_insecure: bool,
    ) -> None:
        self._session = session
        self._call = call
        self._payload = payload
        self._secrets = list_url_secrets(url)
        self._clock = clock
        self._allow_remote_insecure = allow_remote_insecure
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Task[Any] | None = None
        self._has_ended = False
        self._error: BaseException | None = None
        """Of the last request: it got no answer, or none that is a success."""
        self._status = 0
        """Of the last answer; 0 before the first."""

    async def run(self, work: Callable[[], bool]) -> bool:
        """What `work` returns, run in a thread whose requests are sent here. A cancellation ends them."""
        try:
            return await _run_with(self._request, work)
        finally:
            self._has_ended = True
            if self._running is not None:
                self._running.cancel()

    def conclude(self, *, is_accepted: bool) -> int:
        """The status of the last answer, where it is a success.

        Raises:
            SendError: it is none.
            DeliveryLeaseLostError: the lease had expired before the request.
        """
        if self._error is not None:
            raise self._error
        if not self._status:
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, "Apprise sent nothing for this URL")
        if not is_accepted:
            detail = f"Apprise does not accept the answer of {SERVICE} (HTTP {self._status})"
            raise SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, maybe_arrived=True)
        return self._status

    def _request(self, prepared: requests.PreparedRequest) -> requests.Response:
        """Sends a request of the plugin's thread. Raises requests.ConnectionError, whose cause `conclude` raises."""
        if self._has_ended:  # the loop may be closed
            raise requests.ConnectionError
        try:
            return asyncio.run_coroutine_threadsafe(self._send(prepared), self._loop).result()
        except BaseException as error:  # noqa: BLE001  # a plugin catches only those of requests
            self._error = error
            raise requests.ConnectionError from None

    async def _send(self, prepared: requests.PreparedRequest) -> requests.Response:
        if self._has_ended:
            raise asyncio.CancelledError
        self._running = asyncio.current_task()
        url = prepared.url or ""
        try:
            check_secret_url(url, allow_remote_insecure=self._allow_remote_insecure)
        except ValueError as error:
            detail = f"the URL that Apprise builds: {error}"
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail) from None
        headers = {key: str(value) for key, value in prepared.headers.items() if key.lower() not in _OWN_HEADERS}
        secrets = (*self._secrets, *list_url_secrets(url), headers.get("Authorization", ""))
        self._call.before_request(self._payload)
        with translate_connection_errors(SERVICE):
            async with self._session.open().request(
                prepared.method or "POST",
                URL(url, encoded=True),
                data=prepared.body,
                headers=headers,
                skip_auto_headers=("Content-Type", "User-Agent"),
            ) as response:
                text = await read_text(response)
        self._call.record_reply(f"HTTP {response.status} {text}", *secrets)
        self._status, self._error = response.status, None
        if not 200 <= response.status < 300:
            reply = f": {mask_reply(text, *secrets)}" if text.strip() else ""
            detail = f"{SERVICE} answered HTTP {response.status}{reply}"
            self._error = build_status_error(response.status, response.headers, detail, self._clock())
        return _build_response(prepared, response.status, response.reason or "", response.headers, text)


def _build_response(
    prepared: requests.PreparedRequest, status: int, reason: str, headers: Mapping[str, str], text: str
) -> requests.Response:
    built = requests.Response()
    built.status_code, built.reason, built.request, built.url = status, reason, prepared, prepared.url or ""
    built.headers.update(headers)
    built.encoding, built._content = "utf-8", text.encode()  # noqa: SLF001  # it has no other way in
    return built


async def find_first_request(plugin: apprise.NotifyBase) -> str | None:
    """The URL of the first request that a plugin makes for a message; None if it makes none. Sends nothing."""
    found: list[str] = []

    def refuse(prepared: requests.PreparedRequest) -> requests.Response:
        found.append(prepared.url or "")
        raise requests.ConnectionError

    await _run_with(refuse, lambda: plugin.notify(title="keypulse", body="doctor", body_format="text"))
    return found[0] if found else None


SendRequest = Callable[[requests.PreparedRequest], requests.Response]

_SEND_REQUEST: Final[contextvars.ContextVar[SendRequest | None]] = contextvars.ContextVar("send", default=None)
"""What sends the requests of this thread."""


async def _run_with(send: SendRequest, work: Callable[[], bool]) -> bool:
    """What `work` returns, run in a thread whose requests `send` sends."""
    _route_requests()
    context = contextvars.copy_context()
    context.run(_SEND_REQUEST.set, send)
    try:
        return await asyncio.wrap_future(start_in_thread("apprise", lambda: context.run(work)))
    except requests.RequestException:  # of a plugin that does not catch it
        return False


@lru_cache(maxsize=1)
def _route_requests() -> None:
    """From now on, `requests` asks each thread for what sends; where there is nothing, it sends by itself."""
    get_adapter = requests.Session.get_adapter

    def route(session: requests.Session, url: str) -> Any:
        send = _SEND_REQUEST.get()
        if send is None:
            return get_adapter(session, url)
        # What a plugin chose for time-outs, certificates, proxies and redirects does not count.
        return SimpleNamespace(send=lambda request, **_options: send(request))

    requests.Session.get_adapter = route  # type: ignore[method-assign,assignment]
