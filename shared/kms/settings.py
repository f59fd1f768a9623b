"""What a person may set of a KMS key; a new provider is one class here, one file beside it, one line in registry.py."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from shared.config.settings import Section, parse_address
from shared.kms.gcp.wire_format import check_key_name


def _parse_endpoint(value: str) -> str:
    return str(parse_address(value))


class GcpKeySettings(Section):
    """A key of Google Cloud KMS."""

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


KeySettings = GcpKeySettings
"""The union of all providers' settings."""
