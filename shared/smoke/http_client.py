"""Requests to one server, limited in time and size; errors are one sentence without credentials."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from shared.check import CheckError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import check_base_url
from shared.net.egress import Egress, EgressError, EgressSettings
from shared.net.http_connector import Connector, open_session, read_bounded

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Of one answer: the rules of a large Prometheus are some megabytes."""
TIMEOUT_SECONDS: Final = 10.0
CA_FILE: Final[ContextVar[Path | None]] = ContextVar("ca_file", default=None)
"""The certificate authorities that every client opened in this context trusts; None: the usual ones."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    body: bytes

    def parse_json(self, source: str) -> Any:
        """The body's JSON. Raises CheckError, which names `source` answered."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise CheckError(
                f"{source} answers with something that is not JSON (HTTP {self.status})",
                "check where its URL leads",
            ) from None


@dataclass(frozen=True, slots=True)
class HttpClient:
    """A client of one server, from `open_client`."""

    url: URL
    session: aiohttp.ClientSession
    token: SecretFile | None

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> HttpResponse:
        """Raises CheckError without an HTTP response in time."""
        return await self._request("GET", path, params=params)

    async def put(self, path: str, body: bytes) -> HttpResponse:
        return await self._request("PUT", path, data=body)

    async def post(self, path: str, document: Any) -> HttpResponse:
        return await self._request("POST", path, json=document)

    async def _request(self, method: str, path: str, **options: Any) -> HttpResponse:
        url = self.url.joinpath(path.lstrip("/"))
        url_text = url.with_user(None)
        try:
            async with self.session.request(
                method, url, headers=self._build_headers(), allow_redirects=False, **options
            ) as response:
                if 300 <= response.status < 400:
                    raise CheckError(
                        f"{url_text} answers with a redirect (HTTP {response.status})",
                        "a token does not follow it: give the final address",
                    )
                size = f"{MAX_RESPONSE_BYTES // 1024 // 1024} MiB"
                excess = CheckError(f"{url_text} answers with more than {size}", "check where it leads")
                body = await read_bounded(response, MAX_RESPONSE_BYTES, excess)
        except TimeoutError:
            raise CheckError(
                f"{url_text} gives no complete answer within {self.session.timeout.total:g} s",
                "see its log, and whether it is overloaded",
            ) from None
        except EgressError as error:
            raise CheckError(
                f"{url_text} cannot be reached: {error.strerror}", "correct HTTPS_PROXY, NO_PROXY or --ca-file"
            ) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise CheckError(
                f"{url_text}: its certificate is not trusted: {error.certificate_error}",
                "give the file of its authority: --ca-file",
            ) from None
        except aiohttp.ClientResponseError as error:  # its own text would hold the URL
            raise CheckError(
                f"{url_text} does not answer with HTTP: {error.message[:200]}", "check what listens there"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise CheckError(
                f"{url_text} cannot be reached: {str(error)[:200] or type(error).__name__}",
                "start it, or correct the address",
            ) from None
        return HttpResponse(response.status, body)

    def _build_headers(self) -> dict[str, str]:
        if self.token is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self.token.read_value()}"}
        except SecretUnreadableError as error:
            raise CheckError(f"the token cannot be read: {error}", "write it into that file") from None


@asynccontextmanager
async def open_client(
    url: str, token: SecretFile | None = None, timeout: float = TIMEOUT_SECONDS
) -> AsyncIterator[HttpClient]:
    """A server, whose connections are closed in the end; `timeout` is for one whole answer."""
    async with open_session(
        Connector(Egress(EgressSettings(ca_file=CA_FILE.get()))),
        timeout=aiohttp.ClientTimeout(total=timeout),
        headers={"User-Agent": "keypulse-smoke"},
    ) as session:
        yield HttpClient(URL(check_base_url(url, allow_user=True)), session, token)


async def check_ready(server: HttpClient) -> str:
    """Check `/-/ready`, which Prometheus, Alertmanager and the relay have. Raises CheckError."""
    answer = await server.get("/-/ready")
    if answer.status != 200:
        body = answer.body[:200].decode(errors="replace").strip()
        raise CheckError(f"it is not ready (HTTP {answer.status}): {body}", "wait until it has started, or see its log")
    return "it is ready"
