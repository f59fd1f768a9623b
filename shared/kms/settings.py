"""What the settings of the keys of all providers have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import field_validator

from shared.config.settings import Section
from shared.credentials import ReadValidity
from shared.kms.fixes import KmsProfile
from shared.kms.port import LOCAL_KEY_NAME, KmsKeyAdmin


class ProviderSettings(Section):
    """The base of a provider's settings.

    A subclass sets its `profile`, and `provider` to its own name, as a Literal with that default.
    Its module imports no client library: the relay, which has none, reads the profiles.
    """

    profile: ClassVar[KmsProfile]
    """Permissions, quotas, advice and commands of the provider."""
    provider: str
    key: str
    """The key, as the provider's settings name it."""

    @field_validator("key", mode="after")
    @classmethod
    def _check_name(cls, key: str) -> str:
        if key in {"", LOCAL_KEY_NAME}:  # a keyring would take what the KMS wrapped for what the local key did
            raise ValueError(
                f"expected the name of a key, and not '{LOCAL_KEY_NAME}', which stands for a service's own local key"
            )
        return key

    @property
    def key_name(self) -> str:
        """The full name of the key, unique among all: of a data key's `kek`, a canary, a label, an alert."""
        return self.key

    @property
    @abstractmethod
    def service_address(self) -> str:
        """The address of the service: its keys fail at the same time, and share a limit of concurrent probes."""

    @property
    def address_setting(self) -> str:
        """The key that sets the address of the service, with its value, for a hint; empty for the provider's own."""
        return ""

    def list_credentials(self) -> Mapping[str, ReadValidity]:
        """What reads the end of each credential that ends, by what it is; keys may share one."""
        return {}

    @abstractmethod
    def connect(self) -> KmsKeyAdmin:
        """The key behind the port. Connects at the first call, so a KMS that is down never prevents a start.

        Imports the provider's client library, which a configuration check does not need.
        """
