"""Any program that accepts JSON over HTTP: each message is a POST, and any 2xx is its receipt.

It gets every event, merged with none. The body, at most 1,000,000 bytes, all moments in RFC 3339:

    {"delivery_id": "…",            the same at each attempt, as in the header `Idempotency-Key`
     "incident_id": "…",            the same for all events of one group
     "episode": 1,                  how many times the incident had started by then
     "accepted_at": "…",
     "status": "firing",            or "resolved"; "firing" where Alertmanager cut resolved alerts off
     "title": "…",                  the cause and its effect, or the alert and where it is
     "receiver": "…", "group_labels": {…}, "common_labels": {…},
     "remark": "",                  what the relay itself adds
     "contacts": {…},               the address of each role, while a critical alert fires
     "alerts": [{"status", "labels": {…}, "annotations": {…}, "starts_at", "ends_at" or null, "fingerprint",
                 "links": {"runbook": "…", "dashboard": "…", "prometheus": "…"}}],
     "unlisted_count": 0}           alerts that did not fit, or that Alertmanager cut off

With `signing_key_file` a request is signed, with the time of the attempt, as Standard Webhooks defines it.

Text is as Alertmanager sent it, without control characters, and cut where it is longer than a person reads; a link is
http(s) or absent.

Signatures of webhooks by HMAC-SHA256 with a timestamp, as the open standard Standard Webhooks defines them.

So that receivers need no code of their own: there are libraries for most languages.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from services.relay.channels.port import Attempt, ChannelSettings, Receipt, SendError, SendReason, SendScope
from services.relay.channels.requests import (
    build_in_thread_if_large,
    build_status_error,
    call_provider,
    check_current_lease,
    mask_reply,
    read_secret,
    report_send_errors,
)
from services.relay.http import HttpSession, read_text, translate_connection_errors
from services.relay.model import Alert, Message
from services.relay.text import (
    Link,
    clean_text,
    compute_status,
    format_remark,
    format_title,
    list_alerts,
    select_contacts,
    truncate,
)
from shared.check import Check, CheckError
from shared.config.file_checks import FileCheck, create_secret_check
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import FilePath, ProviderUrl, SecretPath, UrlFilePath, check_secret_url
from shared.net.egress import EgressSettings

_PREFIX: Final = "whsec_"
_MIN_KEY_BYTES: Final = 24
_MAX_KEY_BYTES: Final = 64
_EXPECTED: Final = "expected a file with a signing key on its first line, whsec_ and base64"


def decode_key(text: str) -> bytes:
    """The bytes of `whsec_…`. Raises ValueError, which does not repeat it."""
    expected = f"expected whsec_ and base64 of {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes"
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(expected) from None
    if not text.startswith(_PREFIX) or not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ValueError(expected)
    return key


SigningKeyPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED, decode_key))]
"""A file with a signing key, or with two, one on each line, while they are rotated; `--check` checks their shape."""


def build_signature_headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed request.

    Args:
        keys: each gives a signature, and a receiver accepts any that it knows.
        message_id: the same at each attempt.
        timestamp: of this attempt, unix seconds; a receiver refuses an old one.
        body: as it is sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


MAX_BODY = 1_000_000  # nginx takes 1 MiB by default
_BODY_OVERHEAD = (
    400_000  # of it, for everything but the alerts: two sets of labels, each 64 * (200 + 500) * 4 bytes at most
)
_MIN_SECRET_LENGTH = 8
"""Characters from which on a part of an address may be a secret."""
_MAX_NAME = 200
_MAX_LABEL = 500
_MAX_LABELS = 64
_MAX_TEXT = 2_000
_MAX_ANNOTATIONS = 20


class WebhookSettings(EgressSettings, ChannelSettings):
    """Where events are posted, and the token that goes with them."""

    merges_waiting: ClassVar[bool] = False
    uses_templates: ClassVar[bool] = False

    kind: Literal["webhook"]
    url: ProviderUrl | None = None
    url_file: UrlFilePath | None = None
    """Holds the address instead, where that is a secret itself."""
    token_file: SecretPath | None = None
    """Sent as `Authorization: Bearer`."""
    signing_key_file: SigningKeyPath | None = None
    """Keys by which each request is signed; see `webhook_signature`."""

    @model_validator(mode="after")
    def _check_one_url(self) -> Self:
        if (self.url is None) is (self.url_file is None):
            raise ValueError("expected either `url` or `url_file`")
        return self

    @property
    def destination(self) -> str:
        """See the base; without the path, which may hold a secret."""
        return urlsplit(self.url).hostname or "" if self.url else "the address in `url_file`"

    def connect(self, timeout: float) -> "WebhookChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return WebhookChannel(self, timeout)


class WebhookChannel:
    """Posts to one address."""

    def __init__(self, settings: WebhookSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._url = settings.url
        self._url_file = SecretFile(settings.url_file) if settings.url_file else None
        self._allow_remote_insecure = settings.allow_remote_insecure
        self._timeout = timeout
        self._clock = clock
        self._token = SecretFile(settings.token_file) if settings.token_file else None
        self._signing_keys = SecretFile(settings.signing_key_file) if settings.signing_key_file else None
        self._session = HttpSession("the webhook", check_current_lease, settings)

    async def send(self, attempt: Attempt) -> Receipt:
        """Posts the event; the receipt holds the HTTP `status`."""
        message = attempt.message
        body = await build_in_thread_if_large(message, lambda: self.render_payload(message))
        async with call_provider(attempt, "the webhook", self._timeout) as call:
            url, token = self._read_url(), read_secret(self._token) if self._token else ""
            secrets = (token, *_list_url_secrets(url))
            headers = {"Content-Type": "application/json", "Idempotency-Key": message.task.delivery_id}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            if self._signing_keys:
                keys = _read_signing_keys(self._signing_keys)
                headers |= build_signature_headers(keys, message.task.delivery_id, int(self._clock()), body.encode())
            call.before_request(body)
            with translate_connection_errors("the webhook"):
                async with self._session.open().post(url, data=body.encode(), headers=headers) as response:
                    if 200 <= response.status < 300:  # what follows the status decides nothing
                        call.record_reply(f"HTTP {response.status} {response.reason}", *secrets)
                        return {"status": str(response.status)}
                    reply = await read_text(response)
            call.record_reply(f"HTTP {response.status} {reply}", *secrets)
            detail = f"the webhook answered HTTP {response.status}" + (
                f": {mask_reply(reply, *secrets)}" if reply.strip() else ""
            )
            raise build_status_error(response.status, response.headers, detail, self._clock())

    def render_payload(self, message: Message) -> str:
        """The body; the token stands in a header, and so not in it."""
        return json.dumps(build_body(message), ensure_ascii=False, separators=(",", ":"))

    def read_secret_versions(self) -> Hashable:
        """Changes with the files of token, URL and signing keys, and those of proxy and authorities."""
        files = self._token, self._url_file, self._signing_keys
        stamps = (file.read_stamp() for file in files if file)
        return *stamps, self._session.read_file_stamps()

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether its address answers to OPTIONS, which asks for nothing (RFC 9110, section 9.3.7)."""
        file = f"{key}.url_file" if self._url_file else None
        return [Check(f"{key} connection", self._check_connection, depends_on=file)]

    async def _check_connection(self) -> str:
        with report_send_errors(), translate_connection_errors("the webhook"):
            url = self._read_url()
            async with self._session.open().options(url) as response:
                status = response.status
        if status >= 500:
            raise CheckError(f"the webhook answers with HTTP {status}", "see the log of what answers there")
        return f"{urlsplit(url).hostname} answers; only send-test shows whether it takes messages"

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _read_url(self) -> str:
        """Where to post to. Raises SendError if its file holds no address."""
        if self._url_file is None:
            return self._url or ""
        try:
            return check_secret_url(read_secret(self._url_file), allow_remote_insecure=self._allow_remote_insecure)
        except ValueError as error:
            raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, f"{self._url_file.path}: {error}") from None


def _read_signing_keys(file: SecretFile) -> list[bytes]:
    """The keys in a file. Raises SendError if it has none, or one that is none."""
    read_secret(file)
    try:
        return [decode_key(text) for text in file.read_values()]
    except (SecretUnreadableError, ValueError) as error:
        raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, f"{file.path}: {error}") from None


def _list_url_secrets(url: str) -> list[str]:
    """What of an address may be a secret, whole and in the parts that an answer may repeat: all but its host."""
    target = url.partition(urlsplit(url).netloc)[2]
    parts = [part for part in re.split("[/?&=#]", target) if len(part) >= _MIN_SECRET_LENGTH]
    return [url, *([target] if len(target) >= _MIN_SECRET_LENGTH else []), *sorted(parts, key=len, reverse=True)]


def build_body(message: Message) -> dict[str, Any]:
    """The body, bounded whatever the alerts hold."""
    event = message.event
    pairs = list_alerts(message)
    alerts: list[dict[str, Any]] = []
    left = MAX_BODY - _BODY_OVERHEAD
    for alert, links in pairs:
        entry = _build_alert(alert, links)
        left -= len(json.dumps(entry, ensure_ascii=False).encode())
        if left < 0:  # never at the first
            break
        alerts.append(entry)
    return {
        "delivery_id": message.task.delivery_id,
        "incident_id": message.task.incident_id,
        "episode": message.task.episode,
        "accepted_at": message.task.accepted_at.isoformat(),
        "status": compute_status(event),
        "title": _clean_and_truncate(format_title(message), _MAX_LABEL),
        "receiver": _clean_and_truncate(event.receiver, _MAX_LABEL),
        "group_labels": _limit_labels(event.group_labels),
        "common_labels": _limit_labels(event.common_labels),
        "remark": format_remark(message),
        "contacts": select_contacts(message),
        "alerts": alerts,
        "unlisted_count": len(pairs) - len(alerts) + event.unlisted_count,
    }


def _build_alert(alert: Alert, links: list[Link]) -> dict[str, Any]:
    usual_first = sorted(alert.annotations.items(), key=lambda pair: (pair[0] not in {"summary", "description"}, pair))
    return {
        "status": alert.status,
        "labels": _limit_labels(alert.labels),
        "annotations": {
            _clean_and_truncate(key, _MAX_NAME): _clean_and_truncate(text, _MAX_TEXT)
            for key, text in usual_first[:_MAX_ANNOTATIONS]
        },
        "starts_at": alert.starts_at.isoformat(),
        "ends_at": alert.ends_at.isoformat() if alert.ends_at else None,
        "fingerprint": _clean_and_truncate(alert.fingerprint, _MAX_LABEL),
        "links": {link.text.lower(): link.url for link in links},
    }


def _limit_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        _clean_and_truncate(key, _MAX_NAME): _clean_and_truncate(value, _MAX_LABEL)
        for key, value in sorted(labels.items())[:_MAX_LABELS]
    }


def _clean_and_truncate(text: str, limit: int) -> str:
    return truncate(clean_text(text), limit)
