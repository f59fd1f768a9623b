"""What a person may set of a key of Google Cloud KMS."""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator

from shared import without
from shared.config.settings import parse_address
from shared.credentials import Validity
from shared.kms.gcp.profile import GCP_PROFILE, check_key_name
from shared.kms.port import KmsKeyAdmin
from shared.kms.settings import ProviderSettings
from shared.net.egress import EgressSettings


def _parse_endpoint(value: str) -> str:
    return str(parse_address(value))


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

    def list_credentials(self) -> Mapping[str, Callable[[], Validity | None]]:
        if self.insecure:
            return {}
        from shared.kms.gcp.credentials import read_projected_token  # noqa: PLC0415  as in `connect`

        return {"projected token": read_projected_token}

    def connect(self) -> KmsKeyAdmin:
        with without("aiohttp"):  # Google's REST, which nobody here uses: 10 MB
            from shared.kms.gcp.client import GcpKmsKey  # noqa: PLC0415  0.4 s that --check and `admin` do not need

        return GcpKmsKey(self.key, endpoint=self.endpoint, insecure=self.insecure, egress=self)
