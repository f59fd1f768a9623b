"""Apprise itself: the plugin of a URL, the text that it gets, and its requests, sent by the relay's own HTTP session.

Apprise by itself follows a redirect and reports success, loses the status and `Retry-After`, keeps no lease, and goes
on in its thread after a time-out. Here a plugin runs in a thread, but each request that it makes by `requests` is sent
in the event loop: with the lease, the proxy, the authorities, the resolver and the limits of every other channel. It
ends with the attempt: a thread that goes on can send nothing more.

Imported only where a channel needs it: Apprise is an extra, and takes 45 MB of memory.
"""

import asyncio
import contextvars
import logging
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

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
from services.relay.model import Message
from services.relay.text import Severity, find_worst_severity, is_resolved
from services.relay.text.chat import MAX_BODY, MAX_TITLE, Text, build_text
from shared.config.file_checks import FileCheckError
from shared.config.settings import check_secret_url
from shared.process.concurrency import start_in_thread

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
        # Where the service has no title, it is in the body.
        limit=min(plugin.body_maxlen - (0 if plugin.title_maxlen else 2 * title_limit), MAX_BODY),
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
