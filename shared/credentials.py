"""When what authenticates ends unless it is renewed: certificates, in files and of servers, and tokens (JWT).

Nothing is verified here, which is done by whoever accepts the credential. The end of what cannot be read is not known.
"""

import asyncio
import base64
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, Field

PROJECTED_TOKEN: Final = "projected token"  # noqa: S105  its name
"""Kubernetes renews it when four fifths of its life are over."""
_NOTICE_SECONDS: Final = 7 * 86400.0
_LAST_SECOND: Final = datetime.max.replace(tzinfo=UTC).timestamp()


class Validity(NamedTuple):
    """When a credential can be used, in Unix seconds; what ends first is the smallest."""

    ends_at: float
    begins_at: float

    def ends_soon(self, now: float, parts: int = 4) -> bool:
        """Whether it should have been renewed, as KMSCredentialExpiring has it: in the last of `parts` of its life."""
        return self.ends_at - now <= min((self.ends_at - self.begins_at) / parts, _NOTICE_SECONDS)

    def __str__(self) -> str:
        left, day = self.ends_at - time.time(), datetime.fromtimestamp(self.ends_at, UTC).date()
        in_words = f"{left / 86400:.0f} days" if left > 3 * 86400 else f"{left / 3600:.1f} hours"
        return f"ends in {in_words}, on {day}" if left > 0 else f"ended on {day}"


Credentials = Mapping[str, Validity | None]
"""By what it is, for a person and for the label `credential`; None where its end is not known."""
ReadValidity = Callable[[], Validity | None]
"""It may block."""


def read_first_to_end(reads: Iterable[ReadValidity]) -> Validity | None:
    """Of several credentials under one name, the one that ends first; one whose end is not known hides none."""
    return min(filter(None, (read() for read in reads)), default=None)


def read_certificate(file: Path) -> Validity | None:
    """Of the certificates in a PEM file, a chain or authorities, the one that ends first. Blocks."""
    from cryptography import x509  # noqa: PLC0415  few have such files

    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError):
        return None
    return min(Validity(each.not_valid_after_utc.timestamp(), each.not_valid_before_utc.timestamp()) for each in found)


def get_server_certificate(transport: asyncio.BaseTransport | None) -> Validity | None:
    """Of the certificate that the other side presented, and that was trusted; None without TLS."""
    found = transport.get_extra_info("peercert") if transport else None
    return Validity(*(ssl.cert_time_to_seconds(found[each]) for each in ("notAfter", "notBefore"))) if found else None


class _Claims(BaseModel):
    """https://www.rfc-editor.org/rfc/rfc7519#section-4.1, in Unix seconds."""

    exp: Annotated[float, Field(ge=0, le=_LAST_SECOND)]
    iat: Annotated[float, Field(ge=0, le=_LAST_SECOND)]


def parse_token(token: str) -> Validity | None:
    """Of a JWT that says when it was issued and when it expires."""
    try:
        _, payload, _ = token.strip().split(".")
        claims = _Claims.model_validate_json(base64.urlsafe_b64decode(f"{payload}=="))
    except ValueError:  # neither three parts, nor base64, nor JSON, or without such claims
        return None
    return Validity(claims.exp, claims.iat)
