"""What the relay and its sending process say to each other. The first word is `Begin`."""

from typing import Any, Final, NamedTuple

from services.relay.channels.channel import Progress
from services.relay.sending.outgoing import Attempted, Outgoing, SendingSettings

OTHER_VERSION: Final = 3
"""The exit code of a process that is not of the relay's own version, and so would not understand it."""


class Begin(NamedTuple):
    """To the process: what it is about."""

    settings: SendingSettings
    logging: tuple[Any, ...] | None
    """What `logs.configure` was called with."""


class Begun(NamedTuple):
    """From the process: it can send."""


class Do(NamedTuple):
    """To the process: send this."""

    number: int
    outgoing: Outgoing


class Stop(NamedTuple):
    """To the process: nobody waits for the end of this any more."""

    number: int


class Done(NamedTuple):
    """From the process: how it ended."""

    number: int
    attempted: Attempted


class KeepThis(NamedTuple):
    """From the process: commit this."""

    number: int
    progress: Progress


class Kept(NamedTuple):
    """To the process: whether it is committed."""

    number: int
    error: Exception | None
    """LeaseLostError or NotKeptError where it is not."""
