"""What the checks of all channels have in common: a call that can send nothing, and what to do about a SendError."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from services.relay.channels.port import Progress
from services.relay.channels.provider_call import ProviderCall
from services.relay.model import Message
from services.relay.send_error import REASON_ADVICE, SendError, SendReason
from shared.check import CheckError


@contextmanager
def report_send_errors(hints: Mapping[SendReason, str] = MappingProxyType({})) -> Iterator[None]:
    """Turn a SendError into a CheckError.

    Args:
        hints: what to do, by reason, where it is not the usual.
    """
    try:
        yield
    except SendError as error:
        raise CheckError(str(error), hints.get(error.reason) or find_hint(error.reason)) from None


def find_hint(reason: SendReason) -> str:
    """What to do about an error for that reason, on any channel."""
    return REASON_ADVICE[reason].action


def create_read_only_call() -> ProviderCall:
    """A call for requests that send nothing: `before_request` is a defect."""
    return ProviderCall(_NoAttempt())


class _NoAttempt:
    """The port's `Attempt` without a message."""

    maybe_sent: Final = False

    @property
    def progress(self) -> Progress:
        return {}

    @property
    def message(self) -> Message:
        raise AssertionError("a check has no message")

    def before_request(self, payload: str) -> None:  # noqa: ARG002  # the port's
        raise AssertionError("a check sends nothing")

    def check_lease(self) -> None:
        """It needs none."""

    def record_reply(self, reply: str) -> None:
        """Nothing is stored."""

    async def save_progress(self, progress: Progress) -> None:  # noqa: ARG002  # the port's
        raise AssertionError("a check makes no progress")
