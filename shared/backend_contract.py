"""Names that one service writes and another reads.

The metrics of the backend that the exporter exports again, and the fields of `/healthz`: both import them from this
module, so that they cannot differ.
"""

from enum import StrEnum
from typing import Final

CRYPTO_MODE: Final = "crypto_mode"
CRYPTO_READY: Final = "crypto_ready"
CRYPTO_INIT_TIMESTAMP: Final = "crypto_init_timestamp_seconds"
CRYPTO_DECRYPTION_ERRORS: Final = "crypto_decryption_errors_total"

KMS_ROTATION_LAST_SUCCESS: Final = "kms_rotation_last_success_timestamp_seconds"
KMS_ROTATION_LAST_FAILURE: Final = "kms_rotation_last_failure_timestamp_seconds"
KMS_ROTATION_IN_PROGRESS: Final = "kms_rotation_in_progress"
KMS_ROTATION_FAILURES: Final = "kms_rotation_failures_total"
LOCAL_KEK_VERSION: Final = "0"
"""The label `kek_version` of data keys that the local key wraps."""
KMS_DATA_KEYS: Final = "kms_data_keys"
KMS_DATA_KEY_ENCRYPTIONS: Final = "kms_data_key_encryptions"
MAX_DATA_KEY_ENCRYPTIONS: Final = 2**32
"""With random nonces of 96 bits: then a repeat is still less likely than 2**-32 (NIST SP 800-38D, section 8.3)."""
KMS_DATA_KEYS_UNUSABLE: Final = "kms_data_keys_unusable"
KMS_DATA_KEYS_MISSING: Final = "kms_data_keys_missing"
KMS_DATA_KEYS_RESTORED: Final = "kms_data_keys_restored_total"
KMS_KEYRING_ROWS_UNREADABLE: Final = "kms_keyring_rows_unreadable"
KMS_LOCAL_KEY_MISSING: Final = "kms_local_key_missing"
KEYRING_METRIC_LABELS: Final[dict[str, tuple[str, ...]]] = {
    KMS_ROTATION_LAST_SUCCESS: ("type",),
    KMS_ROTATION_LAST_FAILURE: (),
    KMS_ROTATION_IN_PROGRESS: (),
    KMS_ROTATION_FAILURES: ("step",),
    KMS_DATA_KEYS: ("kek_version", "status"),
    KMS_DATA_KEY_ENCRYPTIONS: (),
    KMS_DATA_KEYS_UNUSABLE: (),
    KMS_DATA_KEYS_MISSING: (),
    KMS_DATA_KEYS_RESTORED: (),
    KMS_KEYRING_ROWS_UNREADABLE: (),
    KMS_LOCAL_KEY_MISSING: (),
}
"""The metrics of a backend about data keys and their rotation, with the labels of each family."""


class CryptoMode(StrEnum):
    """What wraps the service's data keys: a key on its own disk, or KMS."""

    ENV = "env"
    KMS = "kms"

    @property
    def metric_value(self) -> int:
        """The value of the metric `crypto_mode`: 0 env, 1 kms."""
        return int(self is CryptoMode.KMS)
