"""An event as the outbox keeps it and as it goes to the sending process: JSON in UTF-8."""

from typing import Final

from pydantic import TypeAdapter

from services.relay.model import Event

_EVENT: Final = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    """What `decode` reads."""
    return _EVENT.dump_json(event)


def decode(written: bytes) -> Event:
    """The event that `encode` wrote. Raises ValueError where it is not one."""
    return _EVENT.validate_json(written)
