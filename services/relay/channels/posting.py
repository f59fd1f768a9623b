"""The base of a channel that posts each message as JSON to one URL, which is a secret, and whose status says the rest.

A new kind needs a subclass of `SecretUrlSettings` with its `kind`, and one of `PostingChannel` with its payload.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from services.relay.channels.port import Attempt, ChannelSettings, Receipt, SendError, SendReason, SendScope
from services.relay.channels.requests import (
    build_in_thread_if_large,
    build_status_error,
    call_provider,
    check_current_lease,
    create_check,
    list_url_secrets,
    mask_reply,
    read_secret,
)
from services.relay.http import HttpSession, read_text, translate_connection_errors
from services.relay.model import Message
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile, read_stamp
from shared.config.settings import UrlFilePath, check_secret_url
from shared.net.egress import EgressSettings


class HttpChannelSettings(EgressSettings, ChannelSettings):
    """The settings of a channel that speaks HTTP."""

    status_decides: ClassVar[bool] = False
    """Whether a 2xx is the receipt, whatever follows it, which then is not waited for."""


class SecretUrlSettings(HttpChannelSettings):
    """Where messages are posted, in a file, since the URL is a secret."""

    status_decides: ClassVar[bool] = True

    url_file: UrlFilePath

    @property
    def destination(self) -> str:
        return "the address in `url_file`"


class Answer(NamedTuple):
    """What a provider answered to a POST."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The beginning of the body; the reason beside a success that is not read."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


async def post_json(
    session: HttpSession,
    provider: str,
    url: str,
    body: str,
    headers: Mapping[str, str] | None = None,
    *,
    reads_success: bool = True,
) -> Answer:
    """Posts a body of JSON. Raises SendError where there is no answer."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    with translate_connection_errors(provider):
        async with session.open().post(url, data=body.encode(), headers=headers) as response:
            is_read = reads_success or not 200 <= response.status < 300
            text = await read_text(response) if is_read else response.reason or ""
    return Answer(response.status, response.headers, text)


class HttpChannel:
    """A session, the files of its secrets, and a clock, in unix seconds. The timeout is the seconds of a whole send."""

    def __init__(
        self,
        provider: str,
        settings: HttpChannelSettings,
        secrets: Iterable[SecretFile | None],
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._session = HttpSession(provider, check_current_lease, settings)
        self._secrets = [file for file in secrets if file is not None]
        self._timeout = timeout
        self._clock = clock

    def read_secret_versions(self) -> Hashable:
        return *(read_stamp(file.path) for file in self._secrets), self._session.read_file_stamps()

    async def close(self) -> None:
        await self._session.close()


class PostingChannel(HttpChannel, ABC):
    """Posts to one URL. A 2xx is the receipt, unless a subclass reads more in the answer."""

    provider: ClassVar[str] = "the webhook"
    """How errors name it."""

    def __init__(
        self,
        settings: HttpChannelSettings,
        url: str | Path,
        timeout: float,
        clock: Callable[[], float] = time.time,
        secrets: Iterable[SecretFile | None] = (),
    ) -> None:
        self._url = url if isinstance(url, str) else SecretFile(url)
        files = [self._url] if isinstance(self._url, SecretFile) else []
        super().__init__(self.provider, settings, [*files, *secrets], timeout, clock)
        self._reads_success = not settings.status_decides
        self._allow_remote_insecure = settings.allow_remote_insecure

    @abstractmethod
    def build_payload(self, message: Message, *, may_be_a_repeat: bool) -> str:
        """The body, as JSON; it may say that the message may be a repeat. Pure."""

    def build_headers(self, message: Message, payload: str) -> tuple[Mapping[str, str], Sequence[str]]:  # noqa: ARG002
        """More headers, and the secrets in them, which an answer may repeat. Raises SendError."""
        return {}, ()

    def build_check_headers(self) -> Mapping[str, str]:
        """The credentials of a request that sends nothing, where they are in headers. Raises SendError."""
        return {}

    def read_receipt(self, answer: Answer, secrets: Sequence[str]) -> Receipt:
        """The receipt of an answer. Raises SendError where it is no success."""
        if answer.is_success:
            return {"status": str(answer.status)}
        detail = f"{self.provider} answered HTTP {answer.status}" + (
            f": {mask_reply(answer.text, *secrets)}" if answer.text.strip() else ""
        )
        raise build_status_error(answer.status, answer.headers, detail, self._clock())

    async def send(self, attempt: Attempt) -> Receipt:
        message = attempt.message
        async with call_provider(attempt, self.provider, self._timeout) as call:
            payload = await build_in_thread_if_large(
                message, lambda: self.build_payload(message, may_be_a_repeat=call.maybe_sent)
            )
            url = self.read_url()
            headers, header_secrets = self.build_headers(message, payload)
            secrets = (*header_secrets, *list_url_secrets(url))
            call.before_request(payload)
            answer = await self._post(url, payload, headers)
            call.record_reply(f"HTTP {answer.status} {answer.text}", *secrets)
            return self.read_receipt(answer, secrets)

    def read_url(self) -> str:
        """That of the file; or the one of the configuration, which is checked. Raises SendError if it is none."""
        if isinstance(self._url, str):
            return self._url
        try:
            return check_secret_url(read_secret(self._url), allow_remote_insecure=self._allow_remote_insecure)
        except ValueError as error:
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, f"{self._url.path}: {error}") from None

    def render_payload(self, message: Message) -> str:
        return self.build_payload(message, may_be_a_repeat=False)

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether its address answers to OPTIONS, which asks for nothing (RFC 9110, section 9.3.7)."""
        file = f"{key}.url_file" if isinstance(self._url, SecretFile) else None
        return [create_check(f"{key} connection", self._check_connection, file)]

    async def _post(self, url: str, payload: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await post_json(self._session, self.provider, url, payload, headers, reads_success=self._reads_success)

    async def _check_connection(self) -> str:
        url, headers = self.read_url(), self.build_check_headers()
        with translate_connection_errors(self.provider):
            async with self._session.open().options(url, headers=headers) as response:
                status = response.status
        if status == 401 and headers:  # not 403, by which some refuse the method
            detail = f"{self.provider} refuses the token (HTTP 401)"
            raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
        if status >= 500 and status != 501:  # of a server that knows no OPTIONS
            raise CheckError(f"{self.provider} answers with HTTP {status}", "see the log of what answers there")
        return f"{urlsplit(url).hostname} answers; only send-test shows whether it takes messages"
