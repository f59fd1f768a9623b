"""The messages between the relay and its sender process, over a socket that only these two have.

The first message is `Start`. All messages of one iteration of the event loop go out as one frame: its length in eight
bytes, then the pickle of a list. Both sides are code of one version: the process compares it before it reads a
message.
"""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from services.relay.channels.port import Progress
from services.relay.delivery.attempt import SenderSettings, SendResult
from services.relay.model import DeliveryTask

EXIT_WRONG_VERSION: Final = 3
"""The exit code of a process whose code is of another version than the relay, and may not understand it."""


class Start(NamedTuple):
    """To the process: its settings."""

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
    """To the process: cancel this one."""

    number: int


class PingRequest(NamedTuple):
    """To the process: answer."""

    number: int


class PingResponse(NamedTuple):
    """From the process: it lives."""

    number: int


class SendResponse(NamedTuple):
    """From the process: the result."""

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
    """DeliveryLeaseLostError or ProgressNotSavedError where it is not."""


_LENGTH: Final = 8


class Pipe(asyncio.Protocol):
    """One end.

    Args:
        on_message: called with each message.
        on_closed: called when the other end is gone.
    """

    def __init__(self, on_message: Callable[[Any], object], on_closed: Callable[[], object]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._unsent: list[object] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, message: object) -> None:
        """Sends a message, in order."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        self._on_closed()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._buffer[:_LENGTH], "big")
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view, view[_LENGTH:end] as frame:
                messages = pickle.loads(frame)  # noqa: S301  # nobody else has the socket
            del self._buffer[:end]
            for message in messages:
                self._on_message(message)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:  # else the other end is gone, and `on_closed` was called
            frame = pickle.dumps(unsent, pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((len(frame).to_bytes(_LENGTH, "big"), frame))
