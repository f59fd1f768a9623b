"""Any program that takes JSON over HTTP: a message goes in as a POST, and every 2xx takes it.

It gets every event, merged with none. The body, at most 1,000,000 bytes, all moments in RFC 3339:

    {"delivery_id": "…",            the same at each attempt, as in the header `Idempotency-Key`
     "incident_id": "…",            the same for all events of one group
     "episode": 1,                  how many times the incident had begun by then
     "accepted_at": "…",
     "status": "firing",            or "resolved"; "firing" where Alertmanager cut resolved alerts off
     "receiver": "…", "group_labels": {…}, "common_labels": {…},
     "note": "",                    what the relay itself has to say
     "contacts": {…},               how somebody of each role is reached, while something critical fires
     "alerts": [{"status", "labels": {…}, "annotations": {…}, "starts_at", "ends_at" or null, "fingerprint",
                 "links": {"runbook": "…", "dashboard": "…", "prometheus": "…"}}],
     "not_listed": 0}               alerts that did not fit, or that Alertmanager cut off

Text is as Alertmanager sent it, without control characters, and cut where it is longer than a person reads; a link is
http(s) or absent.
"""

import json
import re
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from services.relay.channels import wording
from services.relay.channels.channel import Attempt, ChannelSettings, Reason, Receipt, Scope, SendError
from services.relay.channels.exchange import exchange, made, secret, told
from services.relay.channels.web_api import ProviderUrl, Session, fit_for_a_secret, reached, refusal, words
from services.relay.model import Alert, Message
from shared.secret_file import SecretFile
from shared.settings import SecretPath

BODY = 1_000_000  # nginx takes 1 MiB unless it is told otherwise
_FRAME = 400_000  # of it, for everything but the alerts: two sets of labels, each 64 * (200 + 500) * 4 bytes at most
_TOKEN = 8
"""Characters from which on a part of an address may be a secret."""
_NAME = 200
_LABEL = 500
_LABELS = 64
_TEXT = 2_000
_TEXTS = 20


class WebhookSettings(ChannelSettings):
    """Where events are posted, and the token that goes with them."""

    merges: ClassVar[bool] = False

    kind: Literal["webhook"]
    url: ProviderUrl | None = None
    url_file: SecretPath | None = None
    """Holds the address instead, where that is a secret itself."""
    token_file: SecretPath | None = None
    """Sent as `Authorization: Bearer`."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.url is None) is (self.url_file is None):
            raise ValueError("expected either `url` or `url_file`")
        return self

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
        self._session = Session("the webhook")

    async def send(self, attempt: Attempt) -> Receipt:
        """Posts the event; the receipt holds the HTTP `status`."""
        message = attempt.message
        body = await made(message, lambda: self.payload(message))
        async with exchange(attempt, "the webhook", self._timeout) as talk:
            url, token = self._address(), secret(self._token) if self._token else ""
            ours = (token, *_confidential(url))
            headers = {"Content-Type": "application/json", "Idempotency-Key": message.delivery_id}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            talk.sending(body)
            with reached("the webhook"):
                async with self._session.get().post(url, data=body.encode(), headers=headers) as response:
                    if 200 <= response.status < 300:  # what follows the status decides nothing
                        talk.answered(f"HTTP {response.status} {response.reason}", *ours)
                        return {"status": str(response.status)}
                    said = await words(response)
            talk.answered(f"HTTP {response.status} {said}", *ours)
            detail = f"the webhook answered HTTP {response.status}" + (f": {told(said, *ours)}" if said.strip() else "")
            raise refusal(response.status, response.headers, detail, self._clock())

    def payload(self, message: Message) -> str:
        """The body; the token stands in a header, and so not in it."""
        return json.dumps(render(message), ensure_ascii=False, separators=(",", ":"))

    def secrets(self) -> Hashable:
        """Another where the token's file is another, or that of the address."""
        return tuple(file.stamp() for file in (self._token, self._url_file) if file)

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _address(self) -> str:
        """Where to post to. Raises SendError where its file holds no address."""
        if self._url_file is None:
            return self._url or ""
        try:
            return fit_for_a_secret(secret(self._url_file), allow_remote_insecure=self._allow_remote_insecure)
        except ValueError as error:
            raise SendError(Reason.MISCONFIGURED, Scope.CHANNEL, f"{self._url_file.path}: {error}") from None


def _confidential(url: str) -> list[str]:
    """What of an address may be a secret, whole and in the parts that an answer may repeat: all but its host."""
    target = url.partition(urlsplit(url).netloc)[2]
    parts = [part for part in re.split("[/?&=#]", target) if len(part) >= _TOKEN]
    return [url, *([target] if len(target) >= _TOKEN else []), *sorted(parts, key=len, reverse=True)]


def render(message: Message) -> dict[str, Any]:
    """The body, bounded whatever the alerts hold."""
    event = message.event
    pairs = wording.listed(message)
    alerts: list[dict[str, Any]] = []
    left = BODY - _FRAME
    for alert, links in pairs:
        shown = _alert(alert, links)
        left -= len(json.dumps(shown, ensure_ascii=False).encode())
        if left < 0:  # never at the first
            break
        alerts.append(shown)
    return {
        "delivery_id": message.delivery_id,
        "incident_id": message.incident_id,
        "episode": message.episode,
        "accepted_at": message.accepted_at.isoformat(),
        "status": wording.status(event),
        "receiver": _cut(event.receiver, _LABEL),
        "group_labels": _labels(event.group_labels),
        "common_labels": _labels(event.common_labels),
        "note": wording.note(message),
        "contacts": wording.contacts(message),
        "alerts": alerts,
        "not_listed": len(pairs) - len(alerts) + event.not_listed,
    }


def _alert(alert: Alert, links: list[wording.Link]) -> dict[str, Any]:
    usual_first = sorted(alert.annotations.items(), key=lambda pair: (pair[0] not in {"summary", "description"}, pair))
    return {
        "status": alert.status,
        "labels": _labels(alert.labels),
        "annotations": {_cut(key, _NAME): _cut(text, _TEXT) for key, text in usual_first[:_TEXTS]},
        "starts_at": alert.starts_at.isoformat(),
        "ends_at": alert.ends_at.isoformat() if alert.ends_at else None,
        "fingerprint": _cut(alert.fingerprint, _LABEL),
        "links": {link.text.lower(): link.url for link in links},
    }


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {_cut(key, _NAME): _cut(value, _LABEL) for key, value in sorted(labels.items())[:_LABELS]}


def _cut(text: str, limit: int) -> str:
    return wording.shorten(wording.readable(text), limit)
