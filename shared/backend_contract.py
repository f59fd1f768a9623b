"""Names that one service writes and another reads.

The metrics of the backend that the exporter exports again, and the fields of `/healthz`: both import them from this
module, so that they cannot differ.
"""

from enum import StrEnum
from typing import Final, NamedTuple

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
KMS_DATA_KEY_ROW_BROKEN: Final = "kms_data_key_row_broken"
KMS_DATA_KEYS_MISSING: Final = "kms_data_keys_missing"
KMS_DATA_KEYS_RESTORED: Final = "kms_data_keys_restored_total"
KMS_KEYRING_ROWS_UNREADABLE: Final = "kms_keyring_rows_unreadable"
KMS_LOCAL_KEY_MISSING: Final = "kms_local_key_missing"


class MetricFamily(NamedTuple):
    meaning: str
    """Its help text, a sentence without its full stop."""
    labels: tuple[str, ...] = ()


CRYPTO_METRICS: Final = {
    CRYPTO_MODE: MetricFamily("What wraps new data keys: 0 the local key (env), 1 KMS"),
    CRYPTO_READY: MetricFamily("1 while it can encrypt and decrypt, and a restart would lose no data key, else 0"),
    CRYPTO_INIT_TIMESTAMP: MetricFamily("Unix time of its last initialisation, or change of mode or readiness"),
    CRYPTO_DECRYPTION_ERRORS: MetricFamily("Decryptions of records that failed"),
}
KEYRING_METRICS: Final = {
    KMS_ROTATION_LAST_SUCCESS: MetricFamily("Unix time of the last rotation that succeeded", ("type",)),
    KMS_ROTATION_LAST_FAILURE: MetricFamily("Unix time of the last step of a rotation that failed", ("type",)),
    KMS_ROTATION_IN_PROGRESS: MetricFamily("1 while a rotation runs, or is unfinished"),
    KMS_ROTATION_FAILURES: MetricFamily("What failed in rotations, by step", ("step",)),
    KMS_DATA_KEYS: MetricFamily("Data keys by version of the KMS key; 0: the local key", ("kek_version", "status")),
    KMS_DATA_KEY_ENCRYPTIONS: MetricFamily("Encryptions with the active data key; the limit is 2^32"),
    KMS_DATA_KEYS_UNUSABLE: MetricFamily("Data keys that it cannot unwrap"),
    KMS_DATA_KEY_ROW_BROKEN: MetricFamily(
        "1 for each data key that a restart would lose, because its row no longer opens to it", ("data_key",)
    ),
    KMS_DATA_KEYS_MISSING: MetricFamily("Data keys that records need and the database lacks"),
    KMS_DATA_KEYS_RESTORED: MetricFamily("Rows of data keys that the database lost, and it put back from memory"),
    KMS_KEYRING_ROWS_UNREADABLE: MetricFamily("Rows of the keyring that another program got wrong"),
    KMS_LOCAL_KEY_MISSING: MetricFamily(
        "1 while there is no local key, so that a restart in an outage of KMS can write nothing, else 0"
    ),
}
"""The metrics of a backend about data keys and their rotation."""


class CryptoMode(StrEnum):
    """What wraps the service's data keys: a key on its own disk, or KMS."""

    ENV = "env"
    KMS = "kms"

    @property
    def metric_value(self) -> int:
        """The value of the metric `crypto_mode`: 0 env, 1 kms."""
        return int(self is CryptoMode.KMS)
