"""The link in a mail by which a reader acknowledges, without a login, one episode of one incident, until it expires.

It opens a page with a button and changes nothing itself: programs that scan mails follow links. Its signature covers
the incident, the episode, the channel, the channel's recipients and the end: it authorises nothing else, and no longer
than these recipients are configured.

The key is derived from `auth.bearer_token_file`, which every replica has, and which keeps two tokens while they are
rotated. Its holder may send alerts, and so may end any incident by a webhook, which is more than to acknowledge it.
"""

import asyncio
import base64
import functools
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode

import structlog

from services.relay.model import Message
from services.relay.text import is_resolved
from shared.config.secret_file import SecretUnreadableError, TokenFile

PATH: Final = "/acknowledge/"
_LIFETIME: Final = 2 * 86_400
"""Seconds after the acceptance of the event; a mail that waited for a day has another one."""
_PURPOSE: Final = b"keypulse: the link in a mail that acknowledges"
_SIGNATURE: Final = re.compile("[A-Za-z0-9_-]{43}")
_NUMBER: Final = re.compile("[0-9]{1,12}")

log = structlog.get_logger(__name__)


class AcknowledgeLink(NamedTuple):
    """What a link authorises."""

    incident_id: str
    episode: int
    channel: str
    """The name of the channel whose mail has it."""
    expires_at: int
    """Unix seconds."""

    @classmethod
    def parse(cls, incident_id: str, query: Mapping[str, str]) -> "AcknowledgeLink | None":
        episode, expires_at, channel = query.get("episode", ""), query.get("expires", ""), query.get("channel", "")
        if not (_NUMBER.fullmatch(episode) and _NUMBER.fullmatch(expires_at)):
            return None
        return cls(incident_id, int(episode), channel, int(expires_at))

    def build_url(self, public_url: str, signature: str) -> str:
        query = {"episode": self.episode, "channel": self.channel, "expires": self.expires_at, "signature": signature}
        return f"{public_url}{PATH}{quote(self.incident_id, safe='')}?{urlencode(query)}"


class SignatureSettings(NamedTuple):
    """What the configuration says about these links."""

    public_url: str
    """The relay's own address."""
    token_file: Path
    """Contains what the key is derived from."""


class LinkSigner:
    """Signs links, and checks signatures, with the settings of the relay that checks them."""

    def __init__(self, settings: SignatureSettings) -> None:
        self._public_url = settings.public_url
        self._tokens = TokenFile(settings.token_file)

    async def add_to(self, message: Message, recipients: str) -> Message:
        """The message with its link; without one where there is nothing to acknowledge, or no key."""
        if is_resolved(message.event) or message.task.context.acknowledged_by:
            return message
        link = build_link(message)
        try:
            signature = (await self._sign(link, recipients))[0]
        except SecretUnreadableError as error:
            log.warning("mail goes without the link that acknowledges", channel=link.channel, error=str(error))
            return message
        return replace(message, acknowledge_url=link.build_url(self._public_url, signature))

    async def is_valid(self, link: AcknowledgeLink, recipients: str, signature: str) -> bool:
        """Whether a relay with one of the tokens signed exactly this. Raises SecretUnreadableError."""
        if not _SIGNATURE.fullmatch(signature):
            return False
        expected = [hmac.compare_digest(signature, each) for each in await self._sign(link, recipients)]
        return any(expected)

    async def _sign(self, link: AcknowledgeLink, recipients: str) -> list[str]:
        signed = json.dumps([*link, recipients]).encode()
        keys = [await asyncio.to_thread(_derive_key, token) for token in self._tokens.read_values()]
        signatures = [base64.urlsafe_b64encode(hmac.digest(key, signed, "sha256")) for key in keys]
        return [signature.decode().rstrip("=") for signature in signatures]


def build_link(message: Message) -> AcknowledgeLink:
    """What the link of a message authorises; the same at each attempt."""
    task = message.task
    expires_at = int(task.accepted_at.timestamp()) + _LIFETIME
    return AcknowledgeLink(task.incident_id, task.episode, task.channel, expires_at)


@functools.lru_cache(maxsize=4)
def _derive_key(token: str) -> bytes:
    """The key of a token: 50 ms once, so that nobody who has a mail can try tokens fast."""
    return hashlib.scrypt(token.encode(), salt=_PURPOSE, n=2**14, r=8, p=1, dklen=32)
