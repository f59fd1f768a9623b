"""From a key's settings to its provider."""

from shared.kms.port import KmsKeyAdmin
from shared.kms.settings import KeySettings


def connect_key(settings: KeySettings) -> KmsKeyAdmin:
    """The key behind the port. Connects at the first call, so a KMS that is down never stops a start."""
    from shared.kms.gcp.client import GcpKmsKey  # noqa: PLC0415  # 0.4 s that --check and each line of `admin` do not need

    return GcpKmsKey(settings.key, endpoint=settings.endpoint, insecure=settings.insecure)
