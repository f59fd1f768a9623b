"""Any program that accepts JSON over HTTP: each message is a POST, and any 2xx is its receipt.

It gets every event, merged with none. docs/configuration/channels.md shows the body and says what each field means.

With `signing_key_file` a request is signed, with the time of the attempt, as Standard Webhooks defines it.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.posting import HttpChannelSettings, PostingChannel
from services.relay.channels.requests import read_secret
from services.relay.model import Alert, Message
from services.relay.text import (
    Link,
    build_distinct,
    clean_text,
    compute_status,
    fit_first,
    format_remark,
    format_title,
    list_alerts,
    select_contacts,
    truncate,
)
from shared.config.file_checks import FileCheck, create_secret_check
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import FilePath, ProviderUrl, SecretPath, UrlFilePath

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
    """The three headers of a signed request: a signature by each key, of which a receiver accepts any that it knows.

    The timestamp is that of the attempt, unix seconds: a receiver refuses an old one.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


MAX_BODY = 1_000_000  # nginx takes 1 MiB by default
_BODY_OVERHEAD = 400_000
"""Bytes of it for everything but the alerts: two sets of labels, each 64 * (200 + 500) * 4 bytes at most."""
_MAX_NAME = 200
_MAX_LABEL = 500
_MAX_LABELS = 64
_MAX_TEXT = 2_000
_MAX_ANNOTATIONS = 20


class WebhookSettings(HttpChannelSettings):
    """Where events are posted, and the token that goes with them."""

    merges_waiting: ClassVar[bool] = False
    uses_templates: ClassVar[bool] = False
    status_decides: ClassVar[bool] = True

    kind: Literal["webhook"]
    url: ProviderUrl | None = None
    url_file: UrlFilePath | None = None
    """Holds the address instead, where that is a secret itself."""
    token_file: SecretPath | None = None
    """Sent as `Authorization: Bearer`."""
    signing_key_file: SigningKeyPath | None = None
    """Keys by which each request is signed."""

    @model_validator(mode="after")
    def _check_one_url(self) -> Self:
        if (self.url is None) is (self.url_file is None):
            raise ValueError("expected either `url` or `url_file`")
        return self

    @property
    def destination(self) -> str:
        """Without the path, which may hold a secret."""
        return urlsplit(self.url).hostname or "" if self.url else "the address in `url_file`"

    def connect(self, timeout: float) -> "WebhookChannel":
        return WebhookChannel(self, timeout)


class WebhookChannel(PostingChannel):
    """Posts to one address; the receipt holds the HTTP `status`."""

    def __init__(self, settings: WebhookSettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._token = SecretFile(settings.token_file) if settings.token_file else None
        self._signing_keys = SecretFile(settings.signing_key_file) if settings.signing_key_file else None
        url, secrets = settings.url_file or settings.url or "", (self._token, self._signing_keys)
        super().__init__(settings, url, timeout, clock, secrets)

    def build_payload(self, message: Message, *, may_be_a_repeat: bool) -> str:  # noqa: ARG002  # it has a key for that
        return json.dumps(build_body(message), ensure_ascii=False, separators=(",", ":"))

    def build_check_headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {read_secret(self._token)}"} if self._token else {}

    def build_headers(self, message: Message, payload: str) -> tuple[Mapping[str, str], Sequence[str]]:
        delivery_id, authorization = message.task.delivery_id, self.build_check_headers()
        headers = {"Idempotency-Key": delivery_id, **authorization}
        if self._signing_keys:
            keys = _read_signing_keys(self._signing_keys)
            headers |= build_signature_headers(keys, delivery_id, int(self._clock()), payload.encode())
        return headers, [value.removeprefix("Bearer ") for value in authorization.values()]


def _read_signing_keys(file: SecretFile) -> list[bytes]:
    """The keys in a file. Raises SendError if it has none, or one that is none."""
    read_secret(file)
    try:
        return [decode_key(text) for text in file.read_values()]
    except (SecretUnreadableError, ValueError) as error:
        raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, f"{file.path}: {error}") from None


def build_body(message: Message) -> dict[str, Any]:
    """The body, bounded whatever the alerts hold."""
    event = message.event
    pairs = list_alerts(message)
    entries = starmap(_build_alert, pairs)
    alerts = fit_first(
        entries, MAX_BODY - _BODY_OVERHEAD, lambda entry: len(json.dumps(entry, ensure_ascii=False).encode())
    )
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
        "annotations": build_distinct(
            (_clean_and_truncate(key, _MAX_NAME), _clean_and_truncate(text, _MAX_TEXT))
            for key, text in usual_first[:_MAX_ANNOTATIONS]
        ),
        "starts_at": alert.starts_at.isoformat(),
        "ends_at": alert.ends_at.isoformat() if alert.ends_at else None,
        "fingerprint": _clean_and_truncate(alert.fingerprint, _MAX_LABEL),
        "links": {link.text.lower(): link.url for link in links},
    }


def _limit_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return build_distinct(
        (_clean_and_truncate(key, _MAX_NAME), _clean_and_truncate(value, _MAX_LABEL))
        for key, value in sorted(labels.items())[:_MAX_LABELS]
    )


def _clean_and_truncate(text: str, limit: int) -> str:
    return truncate(clean_text(truncate(text, 2 * limit)), limit)  # to clean all of a huge text takes long
