"""How many messages a channel takes in a time, as a person writes it: `1/s`, `120/m`, `500/h`.

The port of a channel: what delivery knows of Slack, mail and the rest.
"""

import re
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Protocol

from pydantic import BeforeValidator

from services.relay.model import Message
from shared.config.settings import Section

_RATE: Final = re.compile(r"([1-9][0-9]{0,5})/([smh])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class MessageRate:
    """A rate."""

    per_second: float
    """In one second."""


def _parse_rate(value: object) -> object:
    if isinstance(value, MessageRate):
        return value
    parts = _RATE.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        raise ValueError("expected messages in a time, such as 1/s, 120/m or 500/h")
    return MessageRate(int(parts[1]) / _SECONDS[parts[2]])


Rate = Annotated[MessageRate, BeforeValidator(_parse_rate, json_schema_input_type=str)]
"""A rate, written as `1/s`."""


Receipt = Mapping[str, str]
"""What the provider said of a message that it took: Slack's channel and ts, PagerDuty's dedup_key, …"""
Progress = Mapping[str, str]
"""What a channel has done of a delivery already, in its own words, such as which recipients have the mail."""


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

    def __init__(
        self,
        reason: Reason,
        scope: Scope,
        detail: str,
        *,
        retry_after: float | None = None,
        maybe_arrived: bool = False,
        reached: bool = False,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.scope = scope
        self.detail = detail
        self.retry_after = retry_after
        """Seconds that the provider asked to wait."""
        self.maybe_arrived = maybe_arrived
        """Whether the provider may have taken the message all the same: the answer was lost, not given."""
        self.provider_works = reached
        """Whether the provider answered and works, so that this error says nothing against the next message."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As pickle needs it: what an exception has by itself would call it with its text alone."""
        optional = {name: getattr(self, name) for name in ("retry_after", "maybe_arrived", "reached")}
        return partial(SendError, **optional), (self.reason, self.scope, self.detail)


class LeaseLostError(Exception):
    """The claim ended while the message was being prepared: somebody else may send it, so this attempt must not."""


class Attempt(Protocol):
    """One try to deliver a message, as its channel sees it."""

    @property
    def message(self) -> Message:
        """What to tell. The same at each attempt of a delivery."""
        ...

    @property
    def progress(self) -> Progress:
        """What earlier attempts of this delivery kept; empty at first."""
        ...

    @property
    def maybe_sent(self) -> bool:
        """Whether an earlier attempt may have arrived without anybody knowing."""
        ...

    def before_request(self, payload: str) -> None:
        """To be called right before each request that tells something.

        Args:
            payload: what goes out, for the record; without credentials.

        Raises:
            LeaseLostError: nothing may be sent any more; let it pass.
        """
        ...

    def check_lease(self) -> None:
        """To be called once more when only the write is left: connecting may have taken longer than the lease.

        Raises:
            LeaseLostError: nothing may be sent any more, and of this request nothing was; let it pass.
        """
        ...

    def record_reply(self, reply: str) -> None:
        """Notes the provider's own words, for the record; without credentials."""
        ...

    async def save_progress(self, progress: Progress) -> None:
        """Commits progress, which the next attempt sees, whatever happens to this one.

        Raises:
            LeaseLostError: nothing may be sent any more; let it pass.
        """
        ...


class Channel(Protocol):
    """An open channel. `send` may be called concurrently for messages of different incidents."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Delivers, or raises SendError or LeaseLostError.

        Bounded in time by the caller's cancellation as well as by its own.
        """
        ...

    def render_payload(self, message: Message) -> str:
        """What `send` would send, credentials masked. Pure, and may take a while: for a thread."""
        ...

    def read_secret_versions(self) -> Hashable:
        """Something that is another when one of its secrets has changed. Reads files: for a thread."""
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


class ChannelSettings(Section):
    """What a person may set of a channel; each kind adds its own keys and a `kind`."""

    merges_waiting: ClassVar[bool] = True
    """Whether what waits for this kind of channel is merged into what comes after it."""
    max_concurrency: ClassVar[int] = 256
    """Messages under way at once."""
    provider_rate: ClassVar[MessageRate | None] = None
    """What the provider takes, where it says so."""
    rate: Rate | None = None
    """Messages in a time, such as 1/s or 120/m, instead of the provider's."""
    allow_remote_insecure: bool = False
    """Lets plaintext leave this machine: to a stand-in among containers."""

    def dedup_scope(self) -> Hashable:
        """Where incidents of one source and groupKey are one, whatever their receiver; None where they are not.

        Equal for channels that lead to the same place.
        """
        return None

    @abstractmethod
    def connect(self, timeout: float) -> Channel:
        """The channel, with `timeout` seconds for a whole send. Connects at the first send."""
