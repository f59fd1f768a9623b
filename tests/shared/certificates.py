"""What the tests of TLS share: an authority of their own that signs certificates, and a web.yml that names them."""

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOCALHOST = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


class Authority:
    """Signs certificates; `ca` is its own, as PEM."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        own = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, file: str, *names: x509.GeneralName, days: float = 1) -> tuple[Path, Path]:
        """The files of a new certificate with these alternative names and of its key; they replace those of `file`.

        It began a day ago, and ends in `days`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(file), self._name, key, days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, secret = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        pem = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(pem))
        return certificate, secret


def web_yml(folder: Path, *, users: dict[str, str] | None = None, **tls: Any) -> Path:
    """Writes `web.yml`: the server's certificate is `server.pem`, unless `tls` says else."""
    document: dict[str, Any] = {"basic_auth_users": users} if users else {}
    if tls or (folder / "server.pem").exists():
        document["tls_server_config"] = {"cert_file": "server.pem", "key_file": "server.key", **tls}
    file = folder / "web.yml"
    file.write_text(yaml.safe_dump(document))
    return file


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float = 1
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
    )
