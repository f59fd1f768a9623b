"""How a client reaches its server: by which proxy, and which certificate authorities it trusts.

Every client of keypulse, whether of HTTP, gRPC or SMTP, has an `Egress`. Its files are read again when they change.
"""

import os
import ssl
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, model_validator

from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import FileStamp, SecretFile, SecretUnreadableError
from shared.config.settings import FilePath, Section
from shared.net.proxy import EgressError, Proxy, find_environment_proxy, parse_proxy_url

DIRECT: Final = "none"


def _load_ca_file(file: Path) -> ssl.SSLContext:
    """Raises FileCheckError."""
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        reason = "expected certificates in PEM"
    except OSError as error:
        reason = error.strerror or "cannot be read"
    raise FileCheckError(f"{file}: {reason}")


def _check_ca_file(file: Path) -> Iterable[Path]:
    _load_ca_file(file)
    return ()  # it holds no secret


def _check_proxy(value: str) -> str:
    if value == DIRECT:
        return value
    try:
        proxy = parse_proxy_url(value, "proxy")
    except ValueError:
        raise ValueError("expected http://HOST:PORT of a proxy, or none") from None
    if proxy.login is not None:
        raise ValueError(
            "expected no user and no password; put the whole URL into a file, and name it in proxy_url_file"
        )
    return value


_EXPECTED_PROXY: Final = "expected a file with http://USER:PASSWORD@HOST:PORT on its first line"
ProxyUrlPath = Annotated[
    FilePath,
    FileCheck(create_secret_check(SecretFile, _EXPECTED_PROXY, lambda url: parse_proxy_url(url, "proxy_url_file"))),
]
"""Of the URL of a proxy with a login."""
CaPath = Annotated[FilePath, FileCheck(_check_ca_file)]
"""Of certificate authorities, in PEM."""


class EgressSettings(Section):
    """How one server is reached; the base of the settings of every client."""

    proxy: Annotated[str, AfterValidator(_check_proxy)] | None = None
    """`http://HOST:PORT`, or `none`; without it, HTTPS_PROXY, HTTP_PROXY and NO_PROXY decide."""
    proxy_url_file: ProxyUrlPath | None = None
    """Contains the proxy's URL instead, with a user and a password."""
    ca_file: CaPath | None = None
    """Certificate authorities in PEM, trusted instead of the usual ones."""

    @model_validator(mode="after")
    def _check_one_proxy(self) -> Self:
        if self.proxy is not None and self.proxy_url_file is not None:
            raise ValueError("expected `proxy` or `proxy_url_file`, not both")
        return self


class Egress:
    """The settings of one client at work."""

    def __init__(self, settings: EgressSettings | None = None, environment: Mapping[str, str] = os.environ) -> None:
        settings = settings or EgressSettings()
        self._proxy = settings.proxy
        self._proxy_file = SecretFile(settings.proxy_url_file) if settings.proxy_url_file else None
        self._ca_file = _CaFile(settings.ca_file) if settings.ca_file else None
        self._environment = environment

    def find_proxy(self, url: str) -> Proxy | None:
        """The proxy to a URL; None: connect to it directly.

        Args:
            url: of the server. With a scheme other than http and https only the settings count.

        Raises:
            EgressError: a proxy is set, but not usable.
        """
        if self._proxy == DIRECT:
            return None
        if self._proxy is not None:
            return parse_proxy_url(self._proxy, "proxy")
        if self._proxy_file is None:
            return find_environment_proxy(url, self._environment)
        try:
            return parse_proxy_url(self._proxy_file.read_value(), "proxy_url_file")
        except SecretUnreadableError as error:
            sentence = f"proxy_url_file {error}"
        except ValueError as error:
            sentence = f"proxy_url_file {self._proxy_file.path}: {error}"
        raise EgressError(sentence, is_permanent=True)

    def load_tls_context(self) -> ssl.SSLContext | None:
        """A context that trusts `ca_file` as it is now; None: the usual authorities count. Raises EgressError."""
        return self._ca_file.load() if self._ca_file else None

    def create_lasting_tls_context(self) -> ssl.SSLContext | None:
        """A context for a client that keeps one: each connection trusts what `load_tls_context` loaded last."""
        if self._ca_file is None:
            return None
        context = _CurrentCaContext(ssl.PROTOCOL_TLS_CLIENT)
        context.ca_file = self._ca_file
        return context

    def read_ca_certificates(self) -> bytes | None:
        """The content of `ca_file`, for a library with a TLS of its own. Raises EgressError."""
        if self._ca_file is None:
            return None
        self._ca_file.load()  # a file without a certificate is an error here
        return self._ca_file.path.read_bytes()

    def read_file_stamps(self) -> Hashable:
        """A value that changes when one of its files does."""
        return (
            self._proxy_file.read_stamp() if self._proxy_file else None,
            SecretFile(self._ca_file.path).read_stamp() if self._ca_file else None,
        )


class _CaFile:
    """Certificate authorities in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: FileStamp | None = None
        self.context: ssl.SSLContext | None = None
        """The one loaded last."""

    def load(self) -> ssl.SSLContext:
        """A context that trusts what the file holds now. Raises EgressError."""
        stamp = SecretFile(self.path).read_stamp()
        if self.context is None or stamp is None or self._stamp != stamp:
            try:
                self.context, self._stamp = _load_ca_file(self.path), stamp
            except FileCheckError as error:
                raise EgressError(f"ca_file {error}", is_permanent=True) from None
        return self.context


class _CurrentCaContext(ssl.SSLContext):
    """Delegates each new connection; what it raised here would leave asyncio's socket open, so it reads no file."""

    ca_file: _CaFile

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio and uvloop for each connection."""
        return (self.ca_file.context or ssl.create_default_context()).wrap_bio(*args, **options)
