"""One try to deliver, as its channel sees it: bound to a lease, and noting what happens for the receipt."""

import asyncio
from collections.abc import Mapping

from services.relay.channels.channel import LeaseLostError
from services.relay.model import Message
from services.relay.outbox.claim import Claim
from services.relay.outbox.held import keep
from services.relay.outbox.store import Store


class OutboxAttempt:
    """The port's `Attempt` for a claim.

    Args:
        store: where progress is kept.
        claim: whose lease it is bound to.
        message: what to tell.
        ends: when the send is cancelled at the latest, by the event loop's clock.
        lease_ends: until when nobody else claims the delivery, by the same clock.
    """

    def __init__(self, store: Store, claim: Claim, message: Message, *, ends: float, lease_ends: float) -> None:
        self.message = message
        self.progress: Mapping[str, str] = claim.progress
        self.maybe_sent = claim.maybe_sent
        self.payload: str | None = None
        """As it last went out; None where nothing has yet."""
        self.answer = ""
        self._store = store
        self._claim = claim
        self._ends = ends
        self._lease_ends = lease_ends

    def sending(self, payload: str) -> None:
        """See the port. The lease has to outlast the send: a process that was stopped for a while finds out here."""
        if asyncio.get_running_loop().time() >= self._ends or self._ends > self._lease_ends:
            raise LeaseLostError
        self.payload = payload

    def answered(self, answer: str) -> None:
        """See the port."""
        self.answer = answer

    async def keep(self, progress: Mapping[str, str]) -> None:
        """See the port."""
        if not await keep(self._store, self._claim, progress):
            raise LeaseLostError
        self.progress = progress
