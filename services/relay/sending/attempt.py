"""One try to deliver, as its channel sees it: bound to a lease, and noting what happens for the receipt."""

import asyncio

from services.relay.channels.channel import LeaseLostError, Progress
from services.relay.model import Message
from services.relay.sending.outgoing import SaveProgress, DeliveryTask


class LeasedAttempt:
    """The port's `Attempt` for what goes out.

    Args:
        task: whose lease it is bound to.
        message: what to tell.
        save_progress: commits progress.
    """

    def __init__(self, task: DeliveryTask, message: Message, save_progress: SaveProgress) -> None:
        self.message = message
        self.progress = task.progress
        self.maybe_sent = task.maybe_sent
        self.payload: str | None = None
        """As it last went out; None where nothing has yet."""
        self._previous_payload: str | None = None
        self.reply = ""
        self._attempt_ends = task.attempt_ends
        self._lease_ends = task.lease_ends
        self._save_progress = save_progress

    def before_request(self, payload: str) -> None:
        """See the port. The lease has to outlast the send: a process that was stopped for a while finds out here."""
        self._check_lease()
        self._previous_payload, self.payload = self.payload, payload

    def check_lease(self) -> None:
        """See the port."""
        try:
            self._check_lease()
        except LeaseLostError:
            self.payload = self._previous_payload
            raise
        self._previous_payload = self.payload

    def record_reply(self, reply: str) -> None:
        """See the port."""
        self.reply = reply

    async def save_progress(self, progress: Progress) -> None:
        """See the port. Raises NotKeptError as well."""
        await self._save_progress(progress)
        self.progress = progress

    def _check_lease(self) -> None:
        if asyncio.get_running_loop().time() >= self._attempt_ends or self._attempt_ends > self._lease_ends:
            raise LeaseLostError
