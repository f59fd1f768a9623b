"""`web.yml` in exporter-toolkit's format → frozen settings, or one line for each error.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What Python's TLS
cannot do is refused with a reason, never ignored.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from shared.config import yaml_file
from shared.config.errors import UNKNOWN_KEY, ConfigurationError, format_errors
from shared.config.file_checks import FileCheck, check_readable
from shared.config.settings import FilePath, Section, use_base_folder

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
        """The files of the settings."""
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
    return error.replace(UNKNOWN_KEY, "unknown key; see docs/configuration.md for those that exist")
