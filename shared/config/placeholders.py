"""Detects placeholders of examples in settings: `acme` and `example` are for documents, and nobody answers there.

RFC 2606 reserves example.com, example.net, example.org and the top-level domain `example`.
"""

from typing import Final
from urllib.parse import urlsplit

_PLACEHOLDERS: Final = frozenset({"acme", "example"})


def is_placeholder_host(host: str) -> bool:
    """Whether a part of the host is `acme` or `example`, such as in example.org or api.acme.com."""
    return not _PLACEHOLDERS.isdisjoint(host.lower().rstrip(".").split("."))


def is_placeholder_url(url: str) -> bool:
    """Whether its host is a placeholder, or the account at the beginning of its path, as in github.com/acme/ops."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return is_placeholder_host(host) or not _PLACEHOLDERS.isdisjoint(parts.path.lower().split("/")[1:2])


def is_placeholder_mailbox(mailbox: str) -> bool:
    """Whether the domain of a mail address is one; a name may stand before the address."""
    return is_placeholder_host(mailbox.rpartition("@")[2].strip("<> "))
