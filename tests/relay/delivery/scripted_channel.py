"""A channel that does as a message's remark says, in whatever process it is; that process imports it from here."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from services.relay.channels.port import Attempt, Channel, ChannelSettings, Receipt, SendError, SendReason, SendScope
from services.relay.model import Message
from shared.check import Check

REFUSED = SendError(
    SendReason.RATE_LIMITED, SendScope.CHANNEL, "later ü", retry_after=30.5, maybe_arrived=True, provider_works=True
)


class RemarkDrivenSettings(ChannelSettings):
    def connect(self, timeout: float) -> Channel:  # noqa: ARG002  # the port's
        return RemarkDrivenChannel()


class RemarkDrivenChannel:
    def __init__(self) -> None:
        self.hanging = 0

    async def send(self, attempt: Attempt) -> Receipt:
        attempt.before_request(self.render_payload(attempt.message))
        match attempt.message.task.remark:
            case "keep":
                await attempt.save_progress({"told": "one of two"})
            case "hang":
                self.hanging += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hanging -= 1
            case "stopped":
                time.sleep(0.5)  # noqa: ASYNC251  # as if the process was
                attempt.check_lease()
            case "block":
                time.sleep(60)  # noqa: ASYNC251  # as a defect would
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "refuse":
                raise REFUSED
            case "fail":
                raise ValueError("xoxb-secret")
        attempt.record_reply("taken")
        return {"process": str(os.getpid()), "progress": str(dict(attempt.progress)), "hanging": str(self.hanging)}

    def render_payload(self, message: Message) -> str:
        return f"{message.event.status} {message.links[0].runbook} {dict(message.contacts)}"

    def read_secret_versions(self) -> int:
        return 0

    def list_checks(self, key: str) -> Sequence[Check]:  # noqa: ARG002  # the port's
        return ()

    async def close(self) -> None:
        pass
