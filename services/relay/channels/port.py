"""The port of a channel: what delivery knows of Slack, email and the others."""

import re
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Protocol

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from services.relay.model import Message
from shared.config.settings import Section
from shared.config.url import check_secret_url

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


def _check_provider_url(url: str, info: ValidationInfo) -> str:
    return check_secret_url(url, allow_remote_insecure=info.data.get("allow_remote_insecure", False))


ProviderUrl = Annotated[str, AfterValidator(_check_provider_url)]
"""Where a channel's provider is reached: https, or http on this machine, or anywhere with `allow_remote_insecure`."""

Receipt = Mapping[str, str]
"""What the provider said of a message that it took: Slack's channel and ts, PagerDuty's dedup_key, …"""
Progress = Mapping[str, str]
"""What a channel has done of a delivery already, in its own words, such as which recipients have the mail."""


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
