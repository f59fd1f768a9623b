"""A hundred services more, such as Microsoft Teams, Discord, Telegram, ntfy and Opsgenie, by Apprise.

Apprise knows what each service wants to be sent, and keypulse sends it; see `plugin`. Nothing is ever attached. A
message whose answer was lost is sent again, since no service can be searched by Apprise.

The package is an extra: `pip install '.[apprise]'`. Without it, a channel of this kind is an error.
https://appriseit.com/services/
"""

import asyncio
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import model_validator

from services.relay.channels.port import (
    Attempt,
    MessageRate,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.channels.posting import HttpChannel, HttpChannelSettings
from services.relay.channels.requests import (
    build_in_thread_if_large,
    call_provider,
    create_check,
    read_secret,
)
from services.relay.model import Message
from services.relay.text.chat import build_text
from shared.check import Check, CheckError
from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import FilePath
from shared.net.page import check_connection
from shared.process.concurrency import start_in_thread

if TYPE_CHECKING:
    from apprise import NotifyBase

_SERVICE: Final = "the service"
_EXPECTED: Final = "expected a file with the Apprise URL of a service on its first line"


def _import_plugin_module() -> ModuleType:
    """The module `plugin`, which imports Apprise: a relay without such a channel needs no memory for it."""
    return importlib.import_module("services.relay.channels.apprise.plugin")


def _is_installed() -> bool:
    return importlib.util.find_spec("apprise") is not None


def _check_url(url: str) -> None:
    if _is_installed():  # else there is another error
        _import_plugin_module().create_plugin(url)


AppriseUrlPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED, _check_url))]
"""A file with the URL of one destination, which is a secret itself; `--check` checks it."""


class AppriseSettings(HttpChannelSettings):
    """One destination of a service that Apprise knows."""

    status_decides: ClassVar[bool] = True  # as with `json://`; what a plugin reads more in it, it says itself
    # Apprise's plugins keep state, and are not made for several threads.
    max_concurrency: ClassVar[int] = 1
    # What chats such as Telegram take for one destination: https://core.telegram.org/bots/faq#my-bot-is-hitting-limits
    shows_values: ClassVar[bool] = True
    provider_rate: ClassVar[MessageRate | None] = MessageRate(1.0)

    # So many lines of 40 characters fit where a service takes 1,000, as Teams does.
    digest_size: ClassVar[int] = 15

    kind: Literal["apprise"]
    url_file: AppriseUrlPath
    """Holds the URL, such as `tgram://TOKEN/CHAT`."""

    @model_validator(mode="after")
    def _check_installed(self) -> Self:
        if not _is_installed():
            raise ValueError("needs the package apprise, which is not installed; run: pip install '.[apprise]'")
        return self

    def connect(self, timeout: float) -> "AppriseChannel":
        return AppriseChannel(self, timeout)


class AppriseChannel(HttpChannel):
    """Sends to one destination."""

    def __init__(self, settings: AppriseSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._url_file = SecretFile(settings.url_file)
        super().__init__(_SERVICE, settings, [self._url_file], timeout, clock)
        self._plugin: tuple[str, NotifyBase] | None = None

    async def send(self, attempt: Attempt) -> Receipt:
        """Sends the message; the receipt holds the `service`, and the HTTP `status` of its last answer."""
        message = attempt.message
        async with call_provider(attempt, _SERVICE, self._timeout) as call:
            url, plugin = await self._open_plugin()
            module = _import_plugin_module()
            text = await build_in_thread_if_large(message, lambda: module.build_for(plugin, message))
            plugin_requests = module.PluginRequests(
                self._session,
                call,
                text.payload,
                url,
                self._clock,
                allow_remote_insecure=self._settings.allow_remote_insecure,
            )
            try:
                is_accepted = await plugin_requests.run(lambda: module.notify(plugin, message, text))
            except BaseException:
                self._plugin = None  # its thread may still use it
                raise
            return {
                "service": str(plugin.service_name),
                "status": str(plugin_requests.conclude(is_accepted=is_accepted)),
            }

    def render_payload(self, message: Message) -> str:
        """Title and body for a service of plain text without narrow limits; another one would need the URL."""
        return build_text(message).payload

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether the server can be reached to which Apprise would send; nothing is sent."""
        return [create_check(f"{key} connection", self._check_connection, f"{key}.url_file")]

    async def _check_connection(self) -> str:
        plugin = await self._create_plugin(read_secret(self._url_file))  # no send gets one that was used for this
        first_request = await _import_plugin_module().find_first_request(plugin)
        if first_request is None:
            raise CheckError(
                "Apprise builds no request for this URL", "correct it; see https://appriseit.com/services/"
            )
        reached = await check_connection(first_request, self._settings)
        return f"{plugin.service_name}: {reached}; only send-test shows whether it takes messages"

    async def _open_plugin(self) -> tuple[str, "NotifyBase"]:
        """The URL, and Apprise's plugin for it; the first one in a process takes a second. Raises SendError."""
        url = read_secret(self._url_file)
        if self._plugin is None or self._plugin[0] != url:
            self._plugin = url, await self._create_plugin(url)
        return self._plugin

    async def _create_plugin(self, url: str) -> "NotifyBase":
        try:
            created = start_in_thread("apprise", lambda: _import_plugin_module().create_plugin(url))
            return await asyncio.wrap_future(created)
        except FileCheckError as error:
            detail = f"{self._url_file.path}: {error}"
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, detail) from None
