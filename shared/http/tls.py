"""`tls_server_config` → the context of a server's connections, and which client certificates it lets in."""

import ipaddress
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Any

import structlog

from shared.config.errors import ConfigurationError
from shared.http.web_config import TlsSettings

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

    Args:
        web_config_path: the settings' file, for errors.
        settings: of TLS.

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
