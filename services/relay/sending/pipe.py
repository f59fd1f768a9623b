"""Messages between the relay and its sending process, over a socket that only these two have.

What is said in one turn of the event loop goes out as one piece: its length in eight bytes, then the pickle of a list.
Pickle, because both ends are the same code of one release under one user, and what passes are plain data classes.
"""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any, Final, cast

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
        """Sends a message; it comes before those that are said after it."""
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
            with memoryview(self._buffer) as view, view[_LENGTH:end] as piece:
                messages = pickle.loads(piece)  # noqa: S301  # see above
            del self._buffer[:end]
            for message in messages:
                self._on_message(message)

    def _flush(self) -> None:
        said, self._unsent = self._unsent, []
        if self._transport is not None:  # else the other end is gone, and `lost` was called
            piece = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((len(piece).to_bytes(_LENGTH, "big"), piece))
