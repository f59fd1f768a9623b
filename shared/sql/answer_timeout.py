"""The timeout of answers from PostgreSQL. Without psycopg, whose import would take 9 MB with an SQLite file, too."""

from dataclasses import dataclass
from typing import Final

_ANSWER_SECONDS: Final = 7.0
"""A little more than the server's `statement_timeout`: the server itself ends a slow statement, with an error."""


@dataclass(slots=True)
class AnswerTimeout:
    """The timeout of connections; a change also applies to current waits."""

    seconds: float | None = _ANSWER_SECONDS
    """None: no timeout."""
