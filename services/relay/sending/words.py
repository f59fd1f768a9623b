"""What the relay and its sending process say to each other. The first word is `Start`."""

from typing import Any, Final, NamedTuple

from services.relay.channels.channel import Progress
from services.relay.sending.outgoing import SendResult, DeliveryTask, SenderSettings

EXIT_WRONG_VERSION: Final = 3
"""The exit code of a process that is not of the relay's own version, and so would not understand it."""


class Start(NamedTuple):
    """To the process: what it is about."""

    settings: SenderSettings
    logging: tuple[Any, ...] | None
    """What `logs.configure` was called with."""


class Started(NamedTuple):
    """From the process: it can send."""


class SendRequest(NamedTuple):
    """To the process: send this."""

    number: int
    task: DeliveryTask


class CancelRequest(NamedTuple):
    """To the process: nobody waits for the end of this any more."""

    number: int


class SendResponse(NamedTuple):
    """From the process: how it ended."""

    number: int
    result: SendResult


class ProgressRequest(NamedTuple):
    """From the process: commit this."""

    number: int
    progress: Progress


class ProgressResponse(NamedTuple):
    """To the process: whether it is committed."""

    number: int
    error: Exception | None
    """LeaseLostError or NotKeptError where it is not."""
