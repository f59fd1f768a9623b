"""What a person may set of a key of Transit."""

from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from shared.config.file_checks import FileCheck, check_readable
from shared.config.settings import Address, FilePath, HttpUrl, SecretPath
from shared.credentials import ReadValidity, read_certificate
from shared.kms.port import KmsKeyAdmin
from shared.kms.settings import ProviderSettings
from shared.kms.transit.auth import SEGMENT, Auth, PathText
from shared.kms.transit.login import get_login
from shared.kms.transit.profile import TRANSIT_PROFILE, format_key_name
from shared.net.egress import EgressSettings


def _check_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("expected https://HOST:PORT, without a path or a login")
    if parts.scheme == "http" and not Address(parts.hostname or "", 0).is_loopback:
        raise ValueError("expected https://, because http:// would send the token in plaintext beyond this machine")
    return url.rstrip("/")


def _check_certificate(file: Path) -> Iterable[Path]:
    check_readable(file)
    return ()  # it holds no secret


class TransitKeySettings(EgressSettings, ProviderSettings):
    """A key of Transit."""

    profile: ClassVar = TRANSIT_PROFILE
    provider: Literal["transit"] = "transit"
    address: Annotated[HttpUrl, AfterValidator(_check_address)]
    server: Annotated[str, Field(pattern=rf"^{SEGMENT}$")] | None = None
    """Part of the key's full name, where several servers have keys of the same path."""
    namespace: PathText | None = None
    mount: PathText = "transit"
    key: Annotated[str, Field(pattern=rf"^{SEGMENT}$")]
    cert_file: Annotated[FilePath, FileCheck(_check_certificate)] | None = None
    """The certificate that the server asks for."""
    key_file: SecretPath | None = None
    auth: Auth

    @model_validator(mode="after")
    def _check_client(self) -> Self:
        if find_spec("aiohttp") is None:
            raise ValueError(
                "`provider: transit` needs the package aiohttp, which is not installed; run: pip install '.[transit]'"
            )
        return self

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.cert_file is None) is not (self.key_file is None):
            raise ValueError("expected both cert_file and key_file, or neither of them")
        return self

    @property
    def key_name(self) -> str:
        return format_key_name(self.server, self.namespace, self.mount, self.key)

    @property
    def service_address(self) -> str:
        parts = urlsplit(self.address)
        return str(Address(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))

    @property
    def address_setting(self) -> str:
        return f"`address` ({self.address})"

    def list_credentials(self) -> Mapping[str, ReadValidity]:
        of = f" of {self.server}" if self.server else ""
        found: dict[str, ReadValidity] = {
            f"Transit token{of}": lambda: get_login(self.address, self.namespace, self.auth).validity
        }
        if self.cert_file:
            found[f"client certificate for Transit{of}"] = partial(read_certificate, self.cert_file)
        return found

    def connect(self) -> KmsKeyAdmin:
        from shared.kms.transit.client import TransitKey  # noqa: PLC0415  aiohttp, which --check does not need

        return TransitKey(self)
