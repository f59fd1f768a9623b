"""Clean strings and safe links. What an alert's author wrote comes in; what any channel may show comes out."""

import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters, tab and newline excepted
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the direction: https://trojansource.codes
    "\ud800-\udfff\ufeff]"  # half a character, which no encoding takes
)
# Slack takes 3,000 for a button, PagerDuty and browsers at least 2,000; three long and three short ones must fit into
# one message.
MAX_URL: Final = 1_900
MAX_SHORT_URL: Final = 650
"""For links that keypulse builds itself, from a few labels."""


class Link(NamedTuple):
    """A link with its text."""

    text: str
    url: str


def clean_text(text: str) -> str:
    """The text without invisible characters; every kind of line end becomes a newline."""
    if text.isprintable():  # as almost always: nothing in it is invisible, or ends a line
        return text.strip()
    return _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)).strip()


def clean_line(text: str) -> str:
    """The text on one line, with single spaces."""
    if not text.isprintable():
        return " ".join(clean_text(text).split())
    return " ".join(text.split()) if "  " in text else text.strip()


def truncate(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


@lru_cache(maxsize=256)
def sanitize_url(url: str | None) -> str | None:
    """An http(s) URL in which nothing ends a link in any medium.

    None if it is none, holds a user or a password (which may be a secret, or make a host look like another), or is
    longer than media take.
    """
    if not url or len(url) > MAX_URL or re.search(r"[\s\\]", url) or url != clean_text(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    return quote_url(url)


def quote_url(url: str) -> str | None:
    """The URL with everything percent-encoded that has no meaning in one (RFC 3986); None if it is then too long.

    Raises ValueError for half a surrogate pair.
    """
    quoted = quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")
    return quoted if len(quoted) <= MAX_URL else None
