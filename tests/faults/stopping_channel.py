"""PagerDuty's channel whose process stops itself once: between the last check of its lease and the write."""

import os
import signal
from pathlib import Path

from services.relay.channels.pagerduty import PagerDutyChannel, PagerDutySettings
from services.relay.channels.port import Attempt, Progress, Receipt
from services.relay.model import Message


class Stopping(PagerDutySettings):
    at: Path
    """While this file is there: it is removed, and the process stops."""

    def connect(self, timeout: float) -> "StoppingChannel":
        return StoppingChannel(self, timeout)


class StoppingChannel(PagerDutyChannel):
    def __init__(self, settings: Stopping, timeout: float) -> None:
        super().__init__(settings, timeout)
        self._at = settings.at

    async def send(self, attempt: Attempt) -> Receipt:
        return await super().send(_Stopped(attempt, self._at))


class _Stopped:
    def __init__(self, attempt: Attempt, at: Path) -> None:
        self._attempt = attempt
        self._at = at

    @property
    def message(self) -> Message:
        return self._attempt.message

    @property
    def progress(self) -> Progress:
        return self._attempt.progress

    @property
    def maybe_sent(self) -> bool:
        return self._attempt.maybe_sent

    def before_request(self, payload: str) -> None:
        self._attempt.before_request(payload)

    def check_lease(self) -> None:
        self._attempt.check_lease()
        if self._at.exists():
            self._at.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    def record_reply(self, answer: str) -> None:
        self._attempt.record_reply(answer)

    async def save_progress(self, progress: Progress) -> None:
        await self._attempt.save_progress(progress)
