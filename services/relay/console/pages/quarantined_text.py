"""The body of a refused webhook as people read and edit it. Pure.

It may be anything that anybody sent: no JSON, no text, nested without end, or much longer once it is indented.
"""

import json
from typing import Final, NamedTuple

from services.relay.outbox.tables import clean_for_database

PAGE_BYTES: Final = 64 * 1024
"""Bytes of a body that a page shows; a larger one is edited elsewhere."""
_MAX_FORMATTED: Final = 4 * PAGE_BYTES
"""Characters of an indented document; of a longer one the page has the body as it came."""


class FormattedBody(NamedTuple):
    """A body as a page shows it."""

    text: str
    is_json: bool
    """Whether `text` is an indented document instead of the body as it came."""
    is_whole: bool
    """Whether all of the body is in it, so that it can be edited."""
    has_replacements: bool
    """Whether `text` has the character that stands for bytes that are no UTF-8."""


def format_body(body: bytes) -> FormattedBody:
    """The body as text, indented where it is JSON."""
    text = body[:PAGE_BYTES].decode(errors="replace")
    is_whole = len(body) <= PAGE_BYTES
    document = _indent(text) if is_whole else None
    # Neither a database nor a page can hold NUL or half a surrogate pair, which JSON can write as escapes.
    text = clean_for_database(document or text)
    return FormattedBody(text, document is not None, is_whole, "\ufffd" in text)


def _indent(text: str) -> str | None:
    """The document, indented; None if it is no JSON, or would be too long."""
    parts, size = [], 0
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            parts.append(part)
            size += len(part)
            if size > _MAX_FORMATTED:
                return None
    except (ValueError, RecursionError):
        return None
    return "".join(parts)
