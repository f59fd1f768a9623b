"""When what authenticates ends unless it is renewed: certificates, in files and of servers, and tokens (JWT).

Nothing is verified here, which is done by whoever accepts the credential. The end of what cannot be read is not known.
"""

import asyncio
import base64
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, Field

from shared.check import CheckError, CheckNotApplicable

_MAX_BYTES: Final = 256 * 1024
"""Of a file: the authorities that a system trusts take less."""
_MAX_TIME: Final = datetime.max.replace(tzinfo=UTC).timestamp()


class Validity(NamedTuple):
    """When a credential can be used; the one that ends first is the smallest."""

    ends_at: float
    """Unix seconds."""
    begins_at: float


Credentials = Mapping[str, Validity | None]
"""By what it is, for a person and for the label `credential`; None where its end is not known."""


def read_file(file: Path) -> bytes:
    """The beginning of a small file. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(_MAX_BYTES)


def read_certificates(file: Path) -> list[Validity]:
    """Of each certificate of a PEM file, in their order; the first is the one that is presented. Blocks."""
    from cryptography import x509  # noqa: PLC0415  few have such files

    try:
        found = x509.load_pem_x509_certificates(read_file(file))
    except (OSError, ValueError):
        return []
    return [Validity(each.not_valid_after_utc.timestamp(), each.not_valid_before_utc.timestamp()) for each in found]


def read_presented_certificate(file: Path) -> Validity | None:
    """Of the first certificate of a PEM file. Blocks."""
    return next(iter(read_certificates(file)), None)


def get_server_certificate(transport: asyncio.BaseTransport | None) -> Validity | None:
    """Of the certificate that the other side presented, and that was trusted; None without TLS."""
    found = transport.get_extra_info("peercert") if transport else None
    if not found:
        return None
    return Validity(ssl.cert_time_to_seconds(found["notAfter"]), ssl.cert_time_to_seconds(found["notBefore"]))


class _Claims(BaseModel):
    """https://www.rfc-editor.org/rfc/rfc7519#section-4.1, in Unix seconds."""

    exp: Annotated[float, Field(ge=0, le=_MAX_TIME)]
    iat: Annotated[float, Field(ge=0, le=_MAX_TIME)]


def parse_token(token: str) -> Validity | None:
    """Of a JWT that says when it was issued and when it expires."""
    header_payload_signature = token.strip().split(".")
    if len(header_payload_signature) != 3:
        return None
    try:
        claims = _Claims.model_validate_json(base64.urlsafe_b64decode(f"{header_payload_signature[1]}=="))
    except ValueError:  # neither base64 nor JSON, or without such claims
        return None
    return Validity(claims.exp, claims.iat)


def describe_end(validity: Validity, now: float) -> str:
    """Such as `ends in 54 days, on 2027-01-24`; `now` in Unix seconds."""
    days, day = (validity.ends_at - now) / 86400, datetime.fromtimestamp(validity.ends_at, UTC).date()
    return f"ends in {days:.0f} days, on {day}" if days >= 3 else f"ends in {days * 24:.1f} hours, on {day}"


def check_end(credential: str, read: Callable[[], Validity | None], now: Callable[[], float] = time.time) -> str:
    """How long it lasts, for `doctor`. Raises CheckError or CheckNotApplicable. Blocks as `read` does."""
    validity = read()
    if validity is None:
        raise CheckNotApplicable("there is none, or its end is not known")
    if validity.ends_at <= now():
        raise CheckError(f"the {credential} has ended", "renew it, and replace its file")
    return describe_end(validity, now())
