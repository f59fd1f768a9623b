"""What passes between who delivers and who sends: what to send, and how it ended.

No I/O. Named tuples, since pickle takes a tenth of the time for them that it takes for a data class with slots.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from services.relay.channels.channel import ChannelSettings, Progress, Receipt, SendError
from services.relay.sending.enrich.links import LinkRules


class DeliveryTask(NamedTuple):
    """One try to send one delivery."""

    channel: str
    delivery_id: str
    incident_id: str
    episode: int
    accepted_at: datetime
    event_json: bytes
    """What to tell; of several events that were merged, the one that they became."""
    events_size: int
    """Bytes of all its events as they were accepted."""
    first_receipt: Receipt | None
    firing_undelivered: bool
    remark: str
    age: float
    """Seconds since the acceptance."""
    progress: Progress
    maybe_sent: bool
    attempt_ends: float
    """When it is cancelled at the latest, by CLOCK_MONOTONIC, which a machine's processes share, as is the next."""
    lease_ends: float
    """Until when nobody else claims the delivery."""
    keep_open: bool = False
    """Whether another incident needs what its end would end."""


class SendResult(NamedTuple):
    """How it ended: one of `receipt`, `error` and `lease_lost`."""

    seconds: float = 0.0
    """From its start until the end."""
    receipt: Receipt | None = None
    error: SendError | None = None
    lease_lost: bool = False
    """The lease ended too soon, and nothing was sent."""
    payload: bytes | None = None
    """As it last went out, credentials masked, compressed by zlib; None where nothing did."""
    reply: str = ""
    """The provider's own words."""


class ProgressNotSavedError(Exception):
    """Progress is not known to be committed; the text says why."""


SaveProgress = Callable[[Progress], Awaitable[None]]
"""Commits what a channel has done of a delivery. Raises LeaseLostError or NotKeptError."""


class Sender(Protocol):
    """Sends, whatever happens; raises nothing but its own cancellation."""

    async def __call__(self, task: DeliveryTask, save_progress: SaveProgress) -> SendResult:
        """How it ended."""
        ...


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """What a person set about sending."""

    channels: Mapping[str, ChannelSettings]
    link_rules: LinkRules
    contacts: Mapping[str, str]
    """How somebody of each role is reached."""
    timeout: float
    """Seconds for one send."""


OpenSender = Callable[[SenderSettings], AbstractAsyncContextManager[Sender]]
"""What sends while its body runs: in this process (`here`) or in one of its own (`apart`)."""
