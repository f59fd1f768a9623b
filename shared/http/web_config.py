"""`web.yml` in exporter-toolkit's format → frozen settings and a TLS context, or one line for each error.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What Python's TLS cannot do is
refused with a reason. The file, and those that it names, are read again when they change, so a renewed certificate
needs no restart; if the new state cannot be used, the old one stays active and one error is logged.
"""

import ipaddress
import re
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import structlog
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from shared.config import yaml_file
from shared.config.errors import UNKNOWN_KEY, ConfigurationError, format_errors
from shared.config.file_checks import FileCheck, check_readable
from shared.config.secret_file import FileStamp, read_stamp
from shared.config.server_settings import is_name_in
from shared.config.settings import FilePath, Section, use_base_folder
from shared.credentials import Credentials, read_certificate
from shared.http.password_check import PasswordChecker

MAX_BCRYPT_COST: Final = 12
"""Of bcrypt: about a quarter of a second of a core for each wrong password. Each step doubles it."""
_INLINE_NOT_SUPPORTED: Final = "is not supported inline; name a file with {}_file, which is read again when it changes"
_DEFAULTS_ONLY: Final = "is not supported; leave it out: OpenSSL's secure defaults apply"
_UNSUPPORTED_KEYS: Final = {
    "tls_server_config.cert": _INLINE_NOT_SUPPORTED.format("cert"),
    "tls_server_config.key": _INLINE_NOT_SUPPORTED.format("key"),
    "tls_server_config.client_ca": _INLINE_NOT_SUPPORTED.format("client_ca"),
    "tls_server_config.cipher_suites": _DEFAULTS_ONLY,
    "tls_server_config.curve_preferences": _DEFAULTS_ONLY,
    "tls_server_config.prefer_server_cipher_suites": _DEFAULTS_ONLY,
    "rate_limit": "is not supported; limit the rate in a proxy",
}
_ALLOWED_HEADERS: Final[dict[str, tuple[str, ...]]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_BCRYPT_PATTERN: Final = re.compile(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")


def _check_client_auth(value: object) -> object:
    if value in ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"):
        raise ValueError(
            "cannot be honoured: Python's TLS verifies each client certificate; set VerifyClientCertIfGiven or "
            "RequireAndVerifyClientCert"
        )
    return value


def _check_tls_version(value: object) -> object:
    if value in ("TLS10", "TLS11"):
        raise ValueError("cannot be honoured: OpenSSL refuses versions before TLS 1.2; set TLS12 or TLS13")
    return value


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name not in _ALLOWED_HEADERS:
            raise ValueError(f"{name}: cannot be set; expected one of {', '.join(_ALLOWED_HEADERS)}")
        if value and _ALLOWED_HEADERS[name] and value not in _ALLOWED_HEADERS[name]:
            raise ValueError(f"{name}: expected {' or '.join(_ALLOWED_HEADERS[name])}")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"{name}: expected printable ASCII on one line")
    return {name: value for name, value in headers.items() if value}


def _check_user_name(name: str) -> str:
    if ":" in name:
        raise ValueError("expected a name without a colon, which ends the name in HTTP")
    return name


def _check_bcrypt_hash(value: str) -> str:
    match = _BCRYPT_PATTERN.fullmatch(value)
    if match is None:
        raise ValueError("expected a bcrypt hash, such as `htpasswd -nBC 10 NAME` prints after the colon")
    if not 4 <= int(match[1]) <= MAX_BCRYPT_COST:
        raise ValueError(
            f"expected a bcrypt hash of cost 4 to {MAX_BCRYPT_COST}: each check of a higher one takes too long"
        )
    return value


TlsVersion = Annotated[Literal["TLS12", "TLS13"], BeforeValidator(_check_tls_version)]


class TlsSettings(Section):
    """How TLS is spoken. Names of suites and curves are OpenSSL's by then."""

    cert_file: FilePath
    """The certificate, and the intermediate ones."""
    key_file: Annotated[FilePath, FileCheck(lambda file: [check_readable(file)])]
    client_auth_type: Annotated[
        Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"],
        BeforeValidator(_check_client_auth),
    ] = "NoClientCert"
    client_ca_file: FilePath | None = None
    client_allowed_sans: tuple[str, ...] | None = None
    """A client certificate must have one of them, literally; None accepts every verified one."""
    min_version: TlsVersion = "TLS12"
    max_version: TlsVersion = "TLS13"

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.min_version > self.max_version:
            raise ValueError("min_version: expected one of at most max_version")
        if (self.client_auth_type == "NoClientCert") != (self.client_ca_file is None):
            raise ValueError(
                "expected both client_ca_file and a client_auth_type other than NoClientCert, or neither of them"
            )
        if self.client_allowed_sans == ():
            raise ValueError("client_allowed_sans: expected at least one name, or no such key")
        if self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans: expected client_auth_type RequireAndVerifyClientCert with it")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for file in (self.cert_file, self.key_file, self.client_ca_file) if file)


class HttpSettings(Section):
    """Headers of every response."""

    http2: bool = True
    """Accepted and without effect: the servers speak HTTP/1.1."""
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] = Field(default_factory=dict)
    """Unless the page sets them itself."""


class WebConfig(Section):
    """The whole of a web.yml."""

    tls_server_config: TlsSettings | None = None
    http_server_config: HttpSettings = HttpSettings()
    basic_auth_users: dict[
        Annotated[str, AfterValidator(_check_user_name)], Annotated[str, AfterValidator(_check_bcrypt_hash)]
    ] = Field(default_factory=dict)
    """Names → bcrypt hashes of their passwords."""

    @property
    def requires_credentials(self) -> bool:
        """Whether every caller needs a password or a client certificate."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


def read_web_config(file: Path) -> WebConfig:
    """Read a web.yml. Relative paths start at its folder. Raises ConfigurationError."""
    with use_base_folder(file.parent.resolve()):
        try:
            return WebConfig(**yaml_file.read_yaml(file))
        except ValidationError as error:
            lines = format_errors(WebConfig, "", file, error)
            raise ConfigurationError([_explain_unsupported_key(each) for each in lines]) from None


def _explain_unsupported_key(error: str) -> str:
    """Name the reason in the error of a key that exporter-toolkit has and this server does not support."""
    for key, reason in _UNSUPPORTED_KEYS.items():
        error = re.sub(f": {key}: unknown key; .*", f": {key}: {reason}", error)
    return error.replace(UNKNOWN_KEY, "unknown key; see docs/configuration/web.md for those that exist")


_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY_MODES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_NAME_KINDS = ("DNS", "email", "IP Address", "URI")

log = structlog.get_logger(__name__)


def create_server_context(web_config_path: Path, settings: TlsSettings) -> ssl.SSLContext:
    """Build the context from the current files.

    Raises:
        ConfigurationError: a file cannot be read, or has another content than expected.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.maximum_version = _VERSIONS[settings.max_version]
    context.set_alpn_protocols(["http/1.1"])
    _check_readable_files(web_config_path, settings)
    location = f"{web_config_path}: tls_server_config"
    try:
        # OpenSSL would prompt for an encrypted key's password on the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError, too
        raise ConfigurationError([f"{location}: {_explain_key_pair_error(settings, error)}"]) from None
    if settings.client_ca_file:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except OSError:  # ssl.SSLError, too
            file = settings.client_ca_file
            raise ConfigurationError([f"{location}.client_ca_file: {file}: expected certificates in PEM"]) from None
    context.verify_mode = _VERIFY_MODES[settings.client_auth_type]
    if settings.client_allowed_sans:
        context.sslobject_class = _restrict_clients(frozenset(settings.client_allowed_sans))
    return context


def read_alternative_names(certificate: dict[str, Any]) -> set[str]:
    """Return a certificate's subject alternative names (DNS, IP, e-mail, URI), from `SSLSocket.getpeercert`."""
    return {
        _normalise_name(kind, value) for kind, value in certificate.get("subjectAltName", ()) if kind in _NAME_KINDS
    }


def _normalise_name(kind: str, value: str) -> str:
    # OpenSSL writes ::1 as 0:0:0:0:0:0:0:1; Go, and so exporter-toolkit, the short form.
    try:
        return str(ipaddress.ip_address(value)) if kind == "IP Address" else value
    except ValueError:
        return value  # of a length that no address has


def _restrict_clients(allowed: Collection[str]) -> type[ssl.SSLObject]:
    """Connections whose handshake fails unless the client's certificate, verified by then, has one of these names."""

    class Only(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            names = read_alternative_names(self.getpeercert() or {})
            if names.isdisjoint(allowed):
                log.warning("client certificate refused: no name of client_allowed_sans", names=sorted(names))
                raise ssl.SSLCertVerificationError("none of client_allowed_sans")

    return Only


def _check_readable_files(web_file: Path, settings: TlsSettings) -> None:
    errors = []
    for key in ("cert_file", "key_file", "client_ca_file"):
        file: Path | None = getattr(settings, key)
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            errors.append(f"{web_file}: tls_server_config.{key}: {file}: cannot be read: {error.strerror}")
    if errors:
        raise ConfigurationError(errors)


def _explain_key_pair_error(settings: TlsSettings, error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{settings.key_file} does not belong to the certificate in {settings.cert_file}"
    return f"expected a certificate in {settings.cert_file} and its key, not encrypted, in {settings.key_file}, as PEM"


@dataclass(frozen=True, slots=True)
class WebState:
    """The content of web.yml and its files at one time."""

    config: WebConfig
    tls: ssl.SSLContext | None
    password_checker: PasswordChecker | None
    credentials: Credentials
    """What the server presents, and what it trusts of its clients, as it was loaded."""


class WebConfigFile:
    """Provides the latest valid state of a web.yml.

    Raises:
        ConfigurationError: it is not valid.
    """

    def __init__(self, file: Path) -> None:
        self.requires_credentials = False
        """Whether a state without credentials is refused: nothing else protects an address that the network reaches."""
        self.reserved_names: Collection[str] = ()
        """Names that no user may have."""
        self.file = file
        self._watched_files: tuple[Path, ...] = ()
        self._stamps: tuple[FileStamp | None, ...] = ()
        self.state = self._read()

    def get_state(self) -> WebState:
        stamps = tuple(map(read_stamp, (self.file, *self._watched_files)))
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self.state = self._check_allowed(self._read())
                log.info("web.yml reloaded", file=str(self.file))
            except ConfigurationError as error:
                for line in error.lines:
                    log.error(  # noqa: TRY400 - a trace adds nothing
                        "web.yml reload failed; the previous configuration stays active", error=line
                    )
        return self.state

    def check_names(self, web: WebState, reserved_names: Collection[str]) -> None:
        """Raises ConfigurationError if a user's name belongs to another caller in the audit log."""
        conflicts = [name for name in web.config.basic_auth_users if is_name_in(name, reserved_names)]
        if conflicts:
            sentence = "expected another name; another caller has this one in the audit log"
            raise ConfigurationError([f"{self.file}: basic_auth_users.{name}: {sentence}" for name in conflicts])

    def _read(self) -> WebState:
        own = read_stamp(self.file)
        config = read_web_config(self.file)
        tls, users = config.tls_server_config, config.basic_auth_users
        self._watched_files = tls.files if tls else ()
        # Before the files are read: a change in between is noticed.
        self._stamps = own, *map(read_stamp, self._watched_files)
        credentials = {"certificate": read_certificate(tls.cert_file)} if tls else {}
        if tls and tls.client_ca_file:
            credentials["client certificate authority"] = read_certificate(tls.client_ca_file)
        context = create_server_context(self.file, tls) if tls else None
        return WebState(config, context, PasswordChecker(users) if users else None, credentials)

    def _check_allowed(self, web: WebState) -> WebState:
        if (web.tls is None) != (self.state.tls is None):
            raise ConfigurationError([f"{self.file}: tls_server_config: comes or goes only with a restart; restart"])
        if self.requires_credentials and not web.config.requires_credentials:
            raise ConfigurationError([f"{self.file}: expected basic_auth_users or required client certificates"])
        self.check_names(web, self.reserved_names)
        return web


class ReloadedTlsContext(ssl.SSLContext):
    """Delegates each new connection to the current context; it has no certificate itself."""

    web_config_file: WebConfigFile

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio and uvloop for each connection."""
        tls = self.web_config_file.get_state().tls
        if tls is None:
            raise ssl.SSLError("no TLS is configured")
        return tls.wrap_bio(*args, **options)
