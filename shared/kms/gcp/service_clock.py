"""The time by Cloud KMS's clock: the header `Date` of an answer over HTTP/1.1, since gRPC's answers have none."""

import ssl
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection

from shared.config.settings import Address


def read_date(address: Address, context: ssl.SSLContext, timeout: float) -> float | None:
    """Return the unix seconds of an answer to a request without credentials; None without an answer. Blocks."""
    connection = HTTPSConnection(*address, timeout=timeout, context=context)
    try:
        connection.request("HEAD", "/")
        return parsedate_to_datetime(connection.getresponse().getheader("Date", "")).timestamp()
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
