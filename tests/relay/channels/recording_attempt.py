"""An attempt without an outbox that records the calls of its channel."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from services.relay.channels.port import Channel, DeliveryLeaseLostError, Progress, Receipt, SendError
from services.relay.model import Message
from tests.relay.channels.examples import message


@dataclass
class Recorded:
    """One attempt; `create_retry` is the next one of the same delivery."""

    message: Message
    progress: Progress = field(default_factory=dict)
    maybe_sent: bool = False
    lease_lost: bool = False
    """Whether somebody else has the delivery by now."""
    stopped: bool = False
    """Whether its process is stopped after `sending`, and its lease is over when it goes on."""
    payloads: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    saved: list[Mapping[str, str]] = field(default_factory=list)

    def before_request(self, payload: str) -> None:
        if self.lease_lost:
            raise DeliveryLeaseLostError
        self.payloads.append(payload)
        self.lease_lost = self.stopped

    def check_lease(self) -> None:
        if self.lease_lost:
            raise DeliveryLeaseLostError

    def record_reply(self, answer: str) -> None:
        self.answers.append(answer)

    async def save_progress(self, progress: Progress) -> None:
        if self.lease_lost:
            raise DeliveryLeaseLostError
        self.saved.append(dict(progress))

    def create_retry(self, error: SendError) -> "Recorded":
        """The attempt that follows one that failed so."""
        progress = self.saved[-1] if self.saved else self.progress
        return Recorded(self.message, progress=progress, maybe_sent=error.maybe_arrived)


async def send(channel: Channel, of: Message) -> Receipt:
    """Sends a message at the first attempt."""
    return await channel.send(Recorded(of))


async def refuse(channel: Channel, attempt: Recorded | None = None) -> SendError:
    """The error of an attempt, of any message by default."""
    try:
        await channel.send(attempt or Recorded(message()))
    except SendError as error:
        return error
    pytest.fail("raise SendError in `read_receipt`; or set `status_decides`, where a status of 2xx says everything")
