"""An event as the outbox keeps it and as it goes to the sending process: JSON in UTF-8."""

from typing import Final

import msgspec

from services.relay.model import Event
from shared import wire

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """What `decode` reads."""
    return _ENCODER.encode(event)


def decode(written: bytes) -> Event:
    """The event that `encode` wrote. Raises ValueError where it is not one."""
    return wire.decode(_DECODER, written)
