"""When the certificates end of the servers that the relay logs in to: mail servers, and the provider of logins.

Each replica looks once an hour, on connections of its own. Of the ports of a host, the certificate that ends first
counts. The end of a certificate that is not trusted, or of a server that does not answer, is not known.
"""

import asyncio
from collections.abc import Awaitable

from services.relay.channels.email.channel import EmailSettings
from services.relay.channels.port import SendError
from services.relay.config import RelaySettings
from services.relay.metrics import Metrics
from shared.check import CheckError
from shared.credentials import Validity
from shared.net.page import read_server_certificate


async def read_certificates(settings: RelaySettings, metrics: Metrics) -> float:
    """Shows them in the metrics. Returns the seconds until the next time."""
    timeout = settings.delivery.timeout
    found: dict[str, Validity | None] = {}
    for channel in settings.channels.values():
        if isinstance(channel, EmailSettings) and channel.tls != "none":
            name = f"certificate of the mail server {channel.host}"
            seen = found.get(name), await _read(channel.connect(timeout).read_certificate(), timeout)
            found[name] = min(filter(None, seen), default=None)
    if oidc := settings.auth.oidc:
        presented = await _read(read_server_certificate(oidc.issuer, oidc), timeout)
        found["certificate of the OpenID provider"] = presented
    metrics.certificates = found
    return 3600.0


async def _read(certificate: Awaitable[Validity | None], timeout: float) -> Validity | None:
    try:
        async with asyncio.timeout(timeout):
            return await certificate
    except (TimeoutError, SendError, CheckError):  # a channel's check, or a login, says why
        return None
