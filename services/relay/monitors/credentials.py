"""When the certificates end of the servers that the relay logs in to: mail servers, and the provider of logins.

Each replica looks once an hour, on connections of its own. The end of a certificate that is not trusted, or of a server
that does not answer, is not known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry

from services.relay.channels.email.channel import EmailSettings
from services.relay.channels.port import SendError
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import close_channel
from services.relay.monitors.supervisor import run_forever
from shared.check import CheckError
from shared.credentials import Credentials, Validity
from shared.http.server import CredentialCollector
from shared.net.page import read_server_certificate

_INTERVAL: Final = 3600.0
Read = Callable[[], Awaitable[Validity | None]]


class CredentialWatch:
    """The credentials that end, as `/metrics` shows them.

    Args:
        registry: where `/metrics` finds them.
        get_server_credentials: those of web.yml.
    """

    def __init__(self, registry: CollectorRegistry, get_server_credentials: Callable[[], Credentials]) -> None:
        self._found: Credentials = {}
        CredentialCollector("relay", registry, lambda: {**get_server_credentials(), **self._found})

    async def run(self, settings: RelaySettings) -> None:
        """Looks at the servers of a configuration, until it is cancelled."""
        self._found = {}
        await run_forever("credentials", partial(self._look, _list_servers(settings), settings.delivery.timeout))

    async def _look(self, servers: Mapping[str, Read], timeout: float) -> float:
        self._found = {credential: await _read(read, timeout) for credential, read in servers.items()}
        return _INTERVAL


def _list_servers(settings: RelaySettings) -> Mapping[str, Read]:
    """What reads the certificate of each server, by what it is."""
    servers: dict[str, Read] = {
        f"certificate of the mail server {channel.server}": partial(
            _read_mail_server, name, channel, settings.delivery.timeout
        )
        for name, channel in settings.channels.items()
        if isinstance(channel, EmailSettings) and channel.tls != "none"
    }
    if oidc := settings.auth.oidc:
        servers["certificate of the OpenID provider"] = partial(read_server_certificate, oidc.issuer, oidc)
    return servers


async def _read(read: Read, timeout: float) -> Validity | None:
    try:
        async with asyncio.timeout(timeout):
            return await read()
    except (TimeoutError, SendError, CheckError):  # a channel's check, or a login, says why
        return None


async def _read_mail_server(name: str, settings: EmailSettings, timeout: float) -> Validity | None:
    channel = settings.connect(timeout)
    try:
        return await channel.read_certificate()
    finally:
        await close_channel(name, channel)
