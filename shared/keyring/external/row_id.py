"""The id of a row as one text, and back: a column's value as it is, several as a list in JSON."""

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import types

MAX_ID_LENGTH: Final = 700
"""Characters: what fits into a key of MariaDB."""

_KINDS: Final[tuple[tuple[type[types.TypeEngine[Any]], type], ...]] = (
    (types.Integer, int),
    (types.Float, float),
    (types.Numeric, Decimal),
    (types.LargeBinary, bytes),
    (types.BINARY, bytes),
    (types.VARBINARY, bytes),
    (types.Uuid, UUID),
    (types.DateTime, datetime),
    (types.Date, date),
    (types.String, str),
)
_PARSERS: Final[dict[type, Callable[[str], Any]]] = {
    int: int,
    Decimal: Decimal,
    bytes: bytes.fromhex,
    UUID: UUID,
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    str: str,
}


def get_python_type(column_type: types.TypeEngine[Any]) -> type:
    """The type of a column's values; text where the type is the database's own, such as an enumeration."""
    return next((kind for types_, kind in _KINDS if isinstance(column_type, types_)), str)


def is_usable(kind: type) -> bool:
    """Whether a value of it names one row alone."""
    return kind in _PARSERS


def format_row_id(values: Sequence[object], kinds: Sequence[type]) -> str:
    """The id of a row. Raises ValueError where it would be that of another row, or of none."""
    texts = [_format_value(value) for value in values]
    text = texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
    if not 0 < len(text) <= MAX_ID_LENGTH or "\0" in text:
        raise ValueError(f"its id is empty, longer than {MAX_ID_LENGTH} characters, or holds a NUL")
    if parse_row_id(text, kinds) != tuple(values):
        raise ValueError("its id is not of the type of its column")
    return text


def parse_row_id(text: str, kinds: Sequence[type]) -> tuple[Any, ...]:
    """The values of the id's columns. Raises ValueError."""
    try:
        texts: Any = [text] if len(kinds) == 1 else json.loads(text)
        return tuple(_PARSERS[kind](part) for kind, part in zip(kinds, texts, strict=True))
    except (ValueError, TypeError, ArithmeticError):
        raise ValueError(f"expected the id of a row, got {text[:100]!r}") from None


def _format_value(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, date) else str(value)
