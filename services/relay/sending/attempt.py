"""One try to deliver, as its channel sees it: bound to a lease, and noting what happens for the receipt."""

import asyncio

from services.relay.channels.channel import LeaseLostError, Progress
from services.relay.model import Message
from services.relay.sending.outgoing import Keep, Outgoing


class LeasedAttempt:
    """The port's `Attempt` for what goes out.

    Args:
        outgoing: whose lease it is bound to.
        message: what to tell.
        keep: commits progress.
    """

    def __init__(self, outgoing: Outgoing, message: Message, keep: Keep) -> None:
        self.message = message
        self.progress = outgoing.progress
        self.maybe_sent = outgoing.maybe_sent
        self.payload: str | None = None
        """As it last went out; None where nothing has yet."""
        self._before: str | None = None
        self.answer = ""
        self._ends = outgoing.ends
        self._lease_ends = outgoing.lease_ends
        self._keep = keep

    def sending(self, payload: str) -> None:
        """See the port. The lease has to outlast the send: a process that was stopped for a while finds out here."""
        self._check()
        self._before, self.payload = self.payload, payload

    def check_lease(self) -> None:
        """See the port."""
        try:
            self._check()
        except LeaseLostError:
            self.payload = self._before
            raise
        self._before = self.payload

    def answered(self, answer: str) -> None:
        """See the port."""
        self.answer = answer

    async def keep(self, progress: Progress) -> None:
        """See the port. Raises NotKeptError as well."""
        await self._keep(progress)
        self.progress = progress

    def _check(self) -> None:
        if asyncio.get_running_loop().time() >= self._ends or self._ends > self._lease_ends:
            raise LeaseLostError
