"""The port of a channel: what delivery knows of Slack, mail and the rest."""

from abc import abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from services.relay.model import Message
from shared.settings import Section

Receipt = Mapping[str, str]
"""What the provider said of a message that it took: Slack's channel and ts, PagerDuty's dedup_key, …"""


class Reason(StrEnum):
    """How one attempt ended: the label `reason` of `relay_delivery_attempts_total`."""

    OK = "ok"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, reset, or not resolved."""
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REJECTED = "rejected"
    """The provider will not take this message."""
    UNAUTHORIZED = "unauthorized"
    """A token, key or password is wrong, revoked or unreadable."""
    MISCONFIGURED = "misconfigured"
    """The place does not exist, or we may not write there."""
    INTERNAL = "internal"
    """A defect of ours."""


class Scope(StrEnum):
    """What an error is about, and so what follows from it."""

    ATTEMPT = "attempt"
    """This one try: again, with backoff."""
    MESSAGE = "message"
    """This message, on any try: dead at once, and shown."""
    CHANNEL = "channel"
    """Every message, until a person acts: again at the longest backoff, never dead before `give_up_after`."""


class SendError(Exception):
    """The one error of this port. Its text is fit for a log: it never holds a token, a key or a password."""

    def __init__(self, reason: Reason, scope: Scope, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.scope = scope
        self.detail = detail
        self.retry_after = retry_after
        """Seconds that the provider asked to wait."""


class Channel(Protocol):
    """An open channel. `send` may be called concurrently for messages of different incidents."""

    async def send(self, message: Message) -> Receipt:
        """Delivers, or raises SendError; bounded in time by the caller's cancellation as well as by its own."""
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


class ChannelSettings(Section):
    """What a person may set of a channel; each kind adds its own keys and a `kind`."""

    @abstractmethod
    def connect(self, timeout: float) -> Channel:
        """The channel, with `timeout` seconds for a whole send. Connects at the first send."""
