"""An event as the outbox keeps it and as it goes to the sending process: JSON in UTF-8."""

from typing import Final

import msgspec

from services.relay.model import Event
from shared import wire

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """What `decode_event` reads."""
    return _ENCODER.encode(event)


def decode_event(event_json: bytes) -> Event:
    """The event that `encode_event` wrote. Raises ValueError where it is not one."""
    return wire.decode_json(_DECODER, event_json)
