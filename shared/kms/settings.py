"""What the settings of every KMS key have in common, whatever the provider."""

from abc import abstractmethod

from shared.config.settings import Section
from shared.kms.port import KmsKeyAdmin
from shared.kms.profile import KmsProfile


class ProviderSettings(Section):
    """The base of a provider's settings: a subclass sets `provider` to its own name, as a Literal with that default."""

    provider: str
    key: str
    """The name of the key, unique within the provider."""

    @property
    @abstractmethod
    def profile(self) -> KmsProfile:
        """Permissions, quotas and advice of the provider."""

    @property
    @abstractmethod
    def service_address(self) -> str:
        """The address of the service: its keys fail at the same time, and share a limit of concurrent probes."""

    @abstractmethod
    def connect(self) -> KmsKeyAdmin:
        """The key behind the port. Connects at the first call, so a KMS that is down never prevents a start.

        Imports the provider's client library, which a configuration check does not need.
        """
