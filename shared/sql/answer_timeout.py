"""How long a connection to PostgreSQL waits for an answer. Without psycopg, which takes 9 MB where there is a file."""

from dataclasses import dataclass
from typing import Final

_ANSWER_SECONDS: Final = 7.5
"""A little more than the server's `statement_timeout`: what is merely slow it ends itself, and says so."""


@dataclass(slots=True)
class AnswerTimeout:
    """How long connections wait for an answer; a change also counts for the waits that are under way."""

    seconds: float | None = _ANSWER_SECONDS
    """None waits for ever."""
