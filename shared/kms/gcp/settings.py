"""What a person may set of a key of Google Cloud KMS."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator
from pydantic_core import from_json

from shared import without
from shared.config.settings import parse_address
from shared.credentials import PROJECTED_TOKEN, ReadValidity, Validity, parse_token
from shared.kms.gcp.profile import GCP_PROFILE, check_key_name
from shared.kms.port import KmsKeyAdmin
from shared.kms.settings import ProviderSettings
from shared.net.egress import EgressSettings


def _parse_endpoint(value: str) -> str:
    return str(parse_address(value))


def _read_projected_token() -> Validity | None:
    """Of the token in a file that an external account exchanges, such as Kubernetes projects one.

    A service account's key does not say its end. Source: https://google.aip.dev/auth/4117, `credential_source`.
    """
    try:
        source = from_json(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_bytes())["credential_source"]
        token = Path(source["file"]).read_text(encoding="utf-8")
        if field := source.get("format", {}).get("subject_token_field_name"):
            token = from_json(token)[field]
        return parse_token(token)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # other credentials, or broken ones
        return None


class GcpKeySettings(EgressSettings, ProviderSettings):
    """A key of Google Cloud KMS."""

    profile: ClassVar = GCP_PROFILE
    provider: Literal["gcp"] = "gcp"
    key: Annotated[str, AfterValidator(check_key_name)]
    endpoint: Annotated[str, AfterValidator(_parse_endpoint)] | None = None
    """HOST:PORT of an emulator or of a private endpoint; without it, Cloud KMS itself."""
    insecure: bool = False
    """Plaintext gRPC without credentials: for an emulator."""
    allow_remote_insecure: bool = False

    @model_validator(mode="after")
    def _refuse_remote_plaintext(self) -> Self:
        if not self.insecure:
            return self
        if self.endpoint is None:
            raise ValueError("`insecure` needs an `endpoint`: HOST:PORT of an emulator")
        if not parse_address(self.endpoint).is_loopback and not self.allow_remote_insecure:
            raise ValueError(
                f"`insecure` sends plaintext to {self.endpoint}, which is not this machine; expected a loopback "
                "endpoint, or `allow_remote_insecure: true`"
            )
        return self

    @property
    def service_address(self) -> str:
        return self.endpoint or "cloudkms.googleapis.com:443"

    @property
    def address_setting(self) -> str:
        return f"`endpoint` ({self.endpoint})" if self.endpoint else ""

    def list_credentials(self) -> Mapping[str, ReadValidity]:
        return {} if self.insecure else {PROJECTED_TOKEN: _read_projected_token}

    def connect(self) -> KmsKeyAdmin:
        with without("aiohttp"):  # Google's REST, which nobody here uses: 10 MB
            from shared.kms.gcp.client import GcpKmsKey  # noqa: PLC0415  0.4 s that --check and `admin` do not need

        return GcpKmsKey(self.key, endpoint=self.endpoint, insecure=self.insecure, egress=self)
