"""From the store's model to Google's messages. Pure."""

from datetime import UTC, datetime, timedelta

from google.cloud import kms_v1 as kms

from ops.kms_emulator.model import Key, Version

_ALGORITHM = kms.CryptoKeyVersion.CryptoKeyVersionAlgorithm.GOOGLE_SYMMETRIC_ENCRYPTION


def build_key_ring(name: str, created_at: float) -> kms.KeyRing:
    """A key ring as GetKeyRing answers it."""
    return kms.KeyRing(name=name, create_time=_to_datetime(created_at))


def build_crypto_key(key: Key) -> kms.CryptoKey:
    """A key as GetCryptoKey answers it, its primary version included."""
    return kms.CryptoKey(
        name=key.name,
        primary=build_crypto_key_version(key, key.version(key.primary)) if key.primary else None,
        purpose=kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT,
        create_time=_to_datetime(key.created_at),
        next_rotation_time=_to_datetime(key.next_rotation),
        rotation_period=_to_timedelta(key.rotation_period),
        version_template=kms.CryptoKeyVersionTemplate(
            protection_level=kms.ProtectionLevel.SOFTWARE, algorithm=_ALGORITHM
        ),
        labels=key.labels,
        destroy_scheduled_duration=_to_timedelta(key.destroy_scheduled_duration),
    )


def build_crypto_key_version(key: Key, version: Version) -> kms.CryptoKeyVersion:
    """A version as GetCryptoKeyVersion answers it."""
    return kms.CryptoKeyVersion(
        name=key.version_name(version.number),
        state=getattr(kms.CryptoKeyVersion.CryptoKeyVersionState, version.state),
        protection_level=kms.ProtectionLevel.SOFTWARE,
        algorithm=_ALGORITHM,
        create_time=_to_datetime(version.created_at),
        generate_time=_to_datetime(version.created_at),
        destroy_time=_to_datetime(version.destroy_time),
        destroy_event_time=_to_datetime(version.destroy_event_time),
    )


def _to_datetime(unix: float | None) -> datetime | None:
    return None if unix is None else datetime.fromtimestamp(unix, UTC)


def _to_timedelta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
