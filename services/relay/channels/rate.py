"""How many messages a channel takes in a time, as a person writes it: `1/s`, `120/m`, `500/h`."""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator

_RATE: Final = re.compile(r"([1-9][0-9]{0,5})/([smh])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class MessageRate:
    """A rate."""

    per_second: float
    """In one second."""


def _parse_rate(value: object) -> object:
    if isinstance(value, MessageRate):
        return value
    parts = _RATE.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        raise ValueError("expected messages in a time, such as 1/s, 120/m or 500/h")
    return MessageRate(int(parts[1]) / _SECONDS[parts[2]])


Rate = Annotated[MessageRate, BeforeValidator(_parse_rate, json_schema_input_type=str)]
"""A rate, written as `1/s`."""
