"""The driver `admin_api`: a service's admin API, by HTTPS.

`http://` is refused for anything but this machine, because it would send the token in plaintext: through
`kubectl port-forward` or `ssh -L` a service is on this machine.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final, Literal

import aiohttp
from pydantic import AfterValidator

from services.rotator.drivers.driver_settings import BaseDriverSettings
from services.rotator.drivers.remote_administration import (
    AdminRequest,
    AdminResponse,
    RemoteAdministration,
)
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import Duration, SecretPath
from shared.config.url import check_base_url, check_secret_url
from shared.keyring.administration import MAX_RESPONSE_BYTES, Administration, RefusedError, UnreachableError
from shared.kms.settings import ProviderSettings
from shared.net.aiohttp_connector import Connector
from shared.net.egress import Egress, EgressSettings
from shared.net.proxy import EgressError

_CONNECT_TIMEOUT: Final = 10.0


def _check_url(url: str) -> str:
    return check_secret_url(check_base_url(url))


class AdminApiDriverSettings(EgressSettings, BaseDriverSettings):
    """Over HTTPS."""

    kind: Literal["admin_api"]
    url: Annotated[str, AfterValidator(_check_url)]
    """Of the service; `/admin/crypto/…` follows it."""
    token_file: SecretPath
    """The first line is sent."""
    timeout: Duration = 300.0
    """Of one call. That which takes longest is a full verification."""

    @property
    def location(self) -> str:
        """Names the keyring."""
        return self.url

    @asynccontextmanager
    async def open(self, kms: ProviderSettings, caller: str) -> AsyncIterator[Administration]:
        """The service's administration; the service calls KMS itself, so `kms` is unused."""
        del kms
        async with aiohttp.ClientSession(
            # Not kept open: one left idle may be closed just as it is used again.
            connector=Connector(Egress(self), force_close=True),
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=_CONNECT_TIMEOUT),
            headers={"Accept-Encoding": "identity", "User-Agent": "keypulse-rotator", "X-Keypulse-Caller": caller},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            yield RemoteAdministration(self.url, _HttpTransport(self, session).send)


class _HttpTransport:
    def __init__(self, settings: AdminApiDriverSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._token = SecretFile(settings.token_file)

    async def send(self, request: AdminRequest) -> AdminResponse:
        token = self._read_token()
        url = self._settings.url
        try:
            async with self._session.request(
                request.method,
                f"{url}/admin/crypto/{request.path}",
                json=request.body,
                headers={"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_RESPONSE_BYTES:
                        raise UnreachableError(f"{url}: the answer is over {MAX_RESPONSE_BYTES // 1024**2} MiB")
        except TimeoutError:
            raise UnreachableError(
                f"{url}: no answer within {self._settings.timeout:g} s", "it may have been done: check with `status`"
            ) from None
        except EgressError as error:
            raise (RefusedError if error.is_permanent else UnreachableError)(f"{url}: {error.strerror}") from None
        except aiohttp.ClientSSLError as error:
            raise RefusedError(
                f"{url}: no secure connection ({type(error).__name__})",
                "where its certificate is by a CA of your own, name that CA's file in ca_file",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            # Only the operating system's text: that of a client error may contain the request.
            cause = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise UnreachableError(f"{url}: no answer: {cause}", "is the service running there?") from None
        # The response may repeat the request, with the token.
        return AdminResponse(response.status, bytes(body).replace(token.encode(), b"[secret]"))

    def _read_token(self) -> str:
        try:
            token = self._token.read_value()
        except SecretUnreadableError as error:
            raise RefusedError(f"token_file {error}", "expected the service's admin token") from None
        if not (token.isascii() and token.isprintable()):
            raise RefusedError(f"token_file {self._token.path}: its first line holds what no HTTP header can carry")
        return token
