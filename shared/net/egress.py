"""How a client reaches its server: names to addresses to a connection, by a proxy or not, and what it trusts.

Every client of keypulse, whether of HTTP, gRPC or SMTP, has an `Egress`. Its files are read again when they change.
Without settings HTTPS_PROXY, HTTP_PROXY and NO_PROXY decide, in capitals or not. NO_PROXY is read as by Go's programs,
so that one value fits Prometheus, Alertmanager and keypulse:
https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config. Loopback addresses are always direct. A tunnel is CONNECT: https://www.rfc-editor.org/rfc/rfc9110#name-connect
"""

import asyncio
import os
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import unquote, urlsplit

from aiohappyeyeballs import start_connection
from pydantic import AfterValidator, model_validator

from shared.config.file_checks import FileCheck, FileCheckError, check_readable, create_secret_check
from shared.config.secret_file import FileStamp, SecretFile, SecretUnreadableError, read_stamp
from shared.config.settings import Address, FilePath, Section
from shared.process.concurrency import start_in_thread

_DEFAULT_PORT: Final = 80
_VARIABLES: Final = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOGIN_STATUSES: Final = {401, 407}
"""Of a proxy that wants a login; tinyproxy answers 401 to a wrong one."""


def describe_os_error(error: BaseException) -> str:
    """The operating system's text alone: asyncio adds Python's tuples, and a client's error may hold the request."""
    own = getattr(error, "os_error", error)  # of aiohttp's
    if not isinstance(own, OSError):
        return type(error).__name__
    if own.errno and not isinstance(own, ssl.SSLError | socket.gaierror):  # which have numbers of their own
        return os.strerror(own.errno)
    return own.strerror or type(error).__name__


class EgressError(OSError):
    """No connection, for its proxy or its authorities; `strerror` is a sentence without credentials.

    Args:
        sentence: what went wrong, and what to do.
        is_permanent: whether a person has to act.
        is_login: whether the proxy wants another user or password.
    """

    strerror: str

    def __init__(self, sentence: str, *, is_permanent: bool = False, is_login: bool = False) -> None:
        super().__init__(sentence)
        self.strerror = sentence
        self.is_permanent = is_permanent
        self.is_login = is_login


@dataclass(frozen=True, slots=True)
class Proxy:
    address: Address
    source: str
    """What names it: HTTPS_PROXY, or a setting."""
    login: str | None = field(default=None, repr=False)
    """`USER:PASSWORD`."""

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.source})"

    @property
    def authorization(self) -> str | None:
        """The value of `Proxy-Authorization`, if it has a login."""
        return None if self.login is None else f"Basic {b64encode(self.login.encode()).decode()}"


def parse_proxy_url(url: str, source: str) -> Proxy:
    """The proxy of `http://HOST:PORT`, perhaps with `USER:PASSWORD@`. Raises ValueError, which does not repeat it."""
    expected = "expected http://HOST:PORT of a proxy"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    # What follows the port may be the rest of a password that is not encoded, and the host its user.
    follows = parts.path not in {"", "/"} or re.search("[?#]", url)
    if parts.scheme != "http" or not host or port == 0 or follows or not url.isprintable():
        raise ValueError(expected)
    login = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(Address(host, port or _DEFAULT_PORT), source, login)


def find_environment_proxy(url: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy to a URL by the environment; None: none leads there, or its scheme is neither http nor https.

    Raises:
        EgressError: the variable names no HTTP proxy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    name = _VARIABLES.get(parts.scheme, "")
    value = _read_variable(name, environment)
    if not value or Address(host, 0).is_loopback:
        return None
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    if any(_matches(entry.strip().lower(), host, port) for entry in _read_variable("NO_PROXY", environment).split(",")):
        return None
    try:
        return parse_proxy_url(value if "://" in value else f"http://{value}", name)
    except ValueError as error:
        raise EgressError(f"{name} in the environment: {error}", is_permanent=True) from None


def build_refusal(proxy: Proxy, target: Address, status: int) -> EgressError:
    """The error for a proxy that answers CONNECT with an HTTP status other than 200."""
    if status in _LOGIN_STATUSES:
        sentence = f"{proxy} wants another user and password (HTTP {status}); put them into its URL"
    elif status < 500:
        sentence = f"{proxy} refuses {target} (HTTP {status}); allow it there, or set `proxy: none`"
    else:
        sentence = f"{proxy} cannot connect to {target} (HTTP {status})"
    is_permanent = status < 500 and status not in {408, 425, 429}
    return EgressError(sentence, is_permanent=is_permanent, is_login=status in _LOGIN_STATUSES)


def _read_variable(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.lower()) or "").strip()


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, an address, a network, a domain; perhaps with a port."""
    if entry == "*":
        return True
    with suppress(ValueError):
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    if with_port := re.fullmatch(r"(.+):(\d+)", entry):
        return int(with_port[2]) == port and _matches(with_port[1], host, port)
    domain = entry.removeprefix("*")
    if domain.startswith("."):  # of subdomains alone
        return host.endswith(domain)
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


DIRECT: Final = "none"


def _load_ca_file(file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        reason = "expected certificates in PEM"
    except OSError as error:
        reason = error.strerror or "cannot be read"
    raise FileCheckError(f"{file}: {reason}")


def load_client_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    """Lets connections of the context show a certificate. Blocks. Raises FileCheckError."""
    for file in filter(None, (cert_file, key_file)):
        check_readable(file)
    try:
        # OpenSSL would prompt for an encrypted key's password on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (OSError, ValueError):  # ssl.SSLError, too
        pair = f"cert_file {cert_file} and key_file {key_file}"
        raise FileCheckError(f"{pair}: expected a certificate and its key, not encrypted, in PEM") from None


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
            read_stamp(self._proxy_file.path) if self._proxy_file else None,
            read_stamp(self._ca_file.path) if self._ca_file else None,
        )


class _CaFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: FileStamp | None = None
        self.context: ssl.SSLContext | None = None
        """The one loaded last."""

    def load(self) -> ssl.SSLContext:
        """A context that trusts what the file holds now. Raises EgressError."""
        stamp = read_stamp(self.path)
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


ResolvedAddress = tuple[socket.AddressFamily, Any]
"""Family of an address, and the address as a socket of that family wants it."""

_pending_lookups: Final[dict[tuple[str, int], Future[list[ResolvedAddress]]]] = {}
"""The last lookup of each name; while one hangs, no second one starts."""
_own_name_lookup: Final[list[Future[str]]] = []
_OWN_NAME_SECONDS: Final = 1.0


async def resolve(host: str, port: int = 0) -> list[ResolvedAddress]:
    """Return all addresses, in the resolver's order. Has no timeout of its own; an address resolves to itself.

    Raises:
        OSError: the name is unknown, or no name server answers.
        UnicodeError: no host can have such a name.
    """
    if (literal := _parse_address_literal(host, port)) is not None:
        return [literal]
    lookup = _pending_lookups.get((host, port))
    if lookup is None or lookup.done():
        lookup = _pending_lookups[host, port] = start_in_thread("name lookup", lambda: _query_resolver(host, port))
    return await asyncio.wrap_future(lookup)


async def get_own_name() -> str:
    """Return this machine's full name; the short one if a name server does not answer in a second."""
    if not _own_name_lookup:
        _own_name_lookup.append(start_in_thread("own name", socket.getfqdn))
    try:
        async with asyncio.timeout(_OWN_NAME_SECONDS):
            return await asyncio.wrap_future(_own_name_lookup[0])
    except TimeoutError:
        return socket.gethostname()


def _parse_address_literal(host: str, port: int) -> ResolvedAddress | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    return None if "%" in host else (socket.AF_INET6, (host, port, 0, 0))  # the system knows the interface's number


def _query_resolver(host: str, port: int) -> list[ResolvedAddress]:
    return [(family, address) for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


ATTEMPT_DELAY_SECONDS: Final = 0.25
"""Seconds until the next address is tried beside one that has not answered: RFC 8305, section 5."""


async def connect(addresses: list[ResolvedAddress]) -> socket.socket:
    """Return the first connection that opens, and close the others. Has no timeout of its own.

    Raises OSError if no address accepts one; its errno is that of all of them, or None if they differ.
    """
    infos = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses]
    return await start_connection(infos, happy_eyeballs_delay=ATTEMPT_DELAY_SECONDS)


_MAX_ANSWER: Final = 16_384
"""Bytes of a proxy's answer, up to the empty line."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


async def open_tunnel(proxy: Proxy, target: Address) -> socket.socket:
    """A connection to `target` through the proxy. Has no timeout of its own. Raises EgressError."""
    try:
        connection = await connect(await resolve(*proxy.address))
    except (OSError, UnicodeError) as error:
        cause = describe_os_error(error)
        raise EgressError(f"{proxy} cannot be reached: {cause}") from None
    try:
        await request_tunnel(connection, proxy, target)
    except BaseException:
        connection.close()
        raise
    return connection


async def request_tunnel(connection: socket.socket, proxy: Proxy, target: Address) -> None:
    """Makes a connection to a proxy one to `target`. Has no timeout of its own. Raises EgressError."""
    login = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n"
    loop = asyncio.get_running_loop()
    answer = bytearray()
    try:
        await loop.sock_sendall(connection, request.encode())
        # Byte by byte: what follows the empty line is of the server, which may speak first, as those of mail do.
        while not answer.endswith(b"\r\n\r\n") and len(answer) < _MAX_ANSWER:
            byte = await loop.sock_recv(connection, 1)
            if not byte:
                break
            answer += byte
    except OSError as error:
        raise EgressError(f"{proxy} closed the connection: {describe_os_error(error)}") from None
    status = _STATUS.match(answer)
    if not answer:
        raise EgressError(f"{proxy} closed the connection")
    if status is None:
        raise EgressError(f"{proxy} does not answer as an HTTP proxy; correct its address", is_permanent=True)
    if not 200 <= int(status[1]) < 300:
        raise build_refusal(proxy, target, int(status[1]))
