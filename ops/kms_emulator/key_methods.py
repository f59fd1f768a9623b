"""Key rings, keys and versions: Google's requests in, Google's messages out, the store changed in between.

Rules: https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, TypeVar

from google.cloud import kms_v1 as kms

from ops.kms_emulator import resource_names
from ops.kms_emulator.faults import EmulatorFaults
from ops.kms_emulator.model import (
    DEFAULT_DESTROY_SCHEDULED_DURATION,
    EXTERNAL_LEVELS,
    EmulatedState,
    Key,
    Version,
    create_material,
    invalid_argument,
    unimplemented,
)
from ops.kms_emulator.store import EmulatorStore

DEFAULT_PAGE = 100
MAX_PAGE = 1000

T = TypeVar("T")
ListRequest = kms.ListKeyRingsRequest | kms.ListCryptoKeysRequest | kms.ListCryptoKeyVersionsRequest


def paginate(items: Sequence[T], request: ListRequest) -> tuple[Sequence[T], str]:
    """Return the requested page, and the token of the next one; empty after the last."""
    if request.filter or request.order_by:
        raise unimplemented("The emulator lists everything in its own order: leave filter and order_by empty.")
    if request.page_size < 0:
        raise invalid_argument(f"The page_size [{request.page_size}] is negative.")
    token = request.page_token or "0"
    if not (token.isascii() and token.isdecimal()) or len(token) > 18:  # Python refuses to read thousands of digits
        raise invalid_argument(f"The page_token [{token}] is not one that this service gave.")
    end = int(token) + min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    return items[int(token) : end], str(end) if end < len(items) else ""


_Algorithm = kms.CryptoKeyVersion.CryptoKeyVersionAlgorithm


def _get_algorithm(key: Key) -> int:
    is_external = key.protection_level in EXTERNAL_LEVELS
    return _Algorithm.EXTERNAL_SYMMETRIC_ENCRYPTION if is_external else _Algorithm.GOOGLE_SYMMETRIC_ENCRYPTION


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
            protection_level=getattr(kms.ProtectionLevel, key.protection_level), algorithm=_get_algorithm(key)
        ),
        labels=key.labels,
        destroy_scheduled_duration=_to_timedelta(key.destroy_scheduled_duration),
        crypto_key_backend=key.backend,
        key_access_justifications_policy=None
        if key.allowed_access_reasons is None
        else {"allowed_access_reasons": key.allowed_access_reasons},
    )


def build_crypto_key_version(key: Key, version: Version) -> kms.CryptoKeyVersion:
    """A version as GetCryptoKeyVersion answers it."""
    optional: dict[str, Any] = {}
    if version.failure_reason:  # such as generation_failure_reason
        optional[f"{version.state.lower().removesuffix('_failed')}_failure_reason"] = version.failure_reason
    if version.external_key:
        field = "external_key_uri" if key.protection_level == "EXTERNAL" else "ekm_connection_key_path"
        optional["external_protection_level_options"] = {field: version.external_key}
    return kms.CryptoKeyVersion(
        **optional,
        name=key.version_name(version.number),
        state=getattr(kms.CryptoKeyVersion.CryptoKeyVersionState, version.state),
        protection_level=getattr(kms.ProtectionLevel, key.protection_level),
        algorithm=_get_algorithm(key),
        create_time=_to_datetime(version.created_at),
        generate_time=_to_datetime(version.created_at),
        destroy_time=_to_datetime(version.destroy_time),
        destroy_event_time=_to_datetime(version.destroy_event_time),
    )


def _to_datetime(unix: float | None) -> datetime | None:
    return None if unix is None else datetime.fromtimestamp(unix, UTC)


def _to_timedelta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


_STATES = kms.CryptoKeyVersion.CryptoKeyVersionState
_SETTABLE_STATES = {_STATES.ENABLED: EmulatedState.ENABLED, _STATES.DISABLED: EmulatedState.DISABLED}
_SETTABLE_FIELDS = ("labels", "rotation_period", "next_rotation_time", "key_access_justifications_policy")
_HOUR = 3600.0


class KeyMethods:
    """The methods that read or change what exists."""

    def __init__(self, store: EmulatorStore, faults: EmulatorFaults) -> None:
        self._store = store
        self._faults = faults

    async def create_key_ring(self, request: kms.CreateKeyRingRequest) -> kms.KeyRing:
        id_ = resource_names.check_new_id(request.key_ring_id, "key_ring_id")
        name = f"{resource_names.parse_location(request.parent)}/keyRings/{id_}"
        return build_key_ring(name, await self._store.add_key_ring(name))

    async def get_key_ring(self, request: kms.GetKeyRingRequest) -> kms.KeyRing:
        """A key ring by its name."""
        name = resource_names.parse_key_ring(request.name)
        return build_key_ring(name, self._store.get_key_ring_time(name))

    async def list_key_rings(self, request: kms.ListKeyRingsRequest) -> kms.ListKeyRingsResponse:
        """The key rings of a location, by name."""
        rings = self._store.list_key_rings(resource_names.parse_location(request.parent))
        page, token = paginate(rings, request)
        found = [build_key_ring(name, self._store.get_key_ring_time(name)) for name in page]
        return kms.ListKeyRingsResponse(key_rings=found, next_page_token=token, total_size=len(rings))

    async def create_crypto_key(self, request: kms.CreateCryptoKeyRequest) -> kms.CryptoKey:
        """A key, with version 1 as its primary unless the caller wants none."""
        id_ = resource_names.check_new_id(request.crypto_key_id, "crypto_key_id")
        name = f"{resource_names.parse_key_ring(request.parent)}/cryptoKeys/{id_}"
        requested = request.crypto_key
        _check_supported(requested)
        now = self._store.clock()
        key = _check_durations(
            Key(
                name,
                now,
                labels=dict(requested.labels),
                destroy_scheduled_duration=_to_seconds(requested.destroy_scheduled_duration)
                or DEFAULT_DESTROY_SCHEDULED_DURATION,
                rotation_period=_to_seconds(requested.rotation_period),
                next_rotation=_to_unix_seconds(requested.next_rotation_time),
                protection_level=_get_level(requested),
                backend=requested.crypto_key_backend,
                allowed_access_reasons=_get_access_reasons(requested),
            )
        )
        if key.protection_level in {"EXTERNAL_VPC", "HSM_SINGLE_TENANT"}:
            self._store.get_backend(key.backend)
        if not request.skip_initial_version_creation:
            key = key.with_new_version(create_material(), now).with_primary(1, now)
        await self._store.add_key(key)
        return build_crypto_key(key)

    async def get_crypto_key(self, request: kms.GetCryptoKeyRequest) -> kms.CryptoKey:
        """A key by its name, its primary version included."""
        return build_crypto_key(await self._store.get_key(resource_names.parse_key_name(request.name)))

    async def list_crypto_keys(self, request: kms.ListCryptoKeysRequest) -> kms.ListCryptoKeysResponse:
        """The keys of a key ring, by name."""
        keys = await self._store.list_keys(resource_names.parse_key_ring(request.parent))
        page, token = paginate(keys, request)
        found = [build_crypto_key(key) for key in page]
        return kms.ListCryptoKeysResponse(crypto_keys=found, next_page_token=token, total_size=len(keys))

    async def update_crypto_key(self, request: kms.UpdateCryptoKeyRequest) -> kms.CryptoKey:
        """Update labels, planned rotation and access policy by the mask."""
        requested = request.crypto_key
        paths = set(request.update_mask.paths)
        if not paths or not paths <= set(_SETTABLE_FIELDS):
            raise invalid_argument(f"The update_mask {sorted(paths)} must name {', '.join(_SETTABLE_FIELDS)}.")
        settings = {
            "labels": dict(requested.labels),
            "rotation_period": _to_seconds(requested.rotation_period),
            "next_rotation": _to_unix_seconds(requested.next_rotation_time),
            "allowed_access_reasons": _get_access_reasons(requested),
        }
        changes: dict[str, Any] = {
            name: value for (name, value), path in zip(settings.items(), _SETTABLE_FIELDS, strict=True) if path in paths
        }

        def update(key: Key) -> Key:
            return _check_durations(replace(key, **changes))

        return build_crypto_key(await self._store.update_key(resource_names.parse_key_name(requested.name), update))

    async def update_crypto_key_primary_version(
        self, request: kms.UpdateCryptoKeyPrimaryVersionRequest
    ) -> kms.CryptoKey:
        """Another ENABLED version becomes the one that Encrypt uses."""
        name = resource_names.parse_key_name(request.name)
        _, number = resource_names.parse_version_name(f"{name}/cryptoKeyVersions/{request.crypto_key_version_id}")
        now = self._store.clock()
        return build_crypto_key(await self._store.update_key(name, lambda key: key.with_primary(number, now)))

    async def create_crypto_key_version(self, request: kms.CreateCryptoKeyVersionRequest) -> kms.CryptoKeyVersion:
        """The next version, which is not the primary: ENABLED, or failed where its external key manager refuses it."""
        material, now = create_material(), self._store.clock()
        name = resource_names.parse_key_name(request.parent)
        options = request.crypto_key_version.external_protection_level_options
        more: dict[str, Any] = {"external_key": options.external_key_uri or options.ekm_connection_key_path}
        is_external = self._store.get_protection_level(name) in EXTERNAL_LEVELS
        refusal = self._faults.match_external("CreateCryptoKeyVersion", name, name) if is_external else None
        if refusal:
            more |= {"state": EmulatedState.GENERATION_FAILED, "failure_reason": refusal.message}
        key = await self._store.update_key(name, lambda key: key.with_new_version(material, now, **more))
        return build_crypto_key_version(key, key.versions[-1])

    async def get_crypto_key_version(self, request: kms.GetCryptoKeyVersionRequest) -> kms.CryptoKeyVersion:
        name, number = resource_names.parse_version_name(request.name)
        return _build_version(await self._store.get_key(name), number)

    async def list_crypto_key_versions(
        self, request: kms.ListCryptoKeyVersionsRequest
    ) -> kms.ListCryptoKeyVersionsResponse:
        """The versions of a key, by number."""
        key = await self._store.get_key(resource_names.parse_key_name(request.parent))
        page, token = paginate(key.versions, request)
        found = [build_crypto_key_version(key, version) for version in page]
        return kms.ListCryptoKeyVersionsResponse(
            crypto_key_versions=found, next_page_token=token, total_size=len(key.versions)
        )

    async def update_crypto_key_version(self, request: kms.UpdateCryptoKeyVersionRequest) -> kms.CryptoKeyVersion:
        name, number = resource_names.parse_version_name(request.crypto_key_version.name)
        if list(request.update_mask.paths) != ["state"]:
            raise invalid_argument(f"The update_mask {list(request.update_mask.paths)} must name state, and only that.")
        # The number itself: proto-plus warns of one that it has no name for.
        state = _SETTABLE_STATES.get(kms.UpdateCryptoKeyVersionRequest.pb(request).crypto_key_version.state)
        if state is None:
            raise invalid_argument("The state of a version can be set to ENABLED or DISABLED only.")
        now = self._store.clock()
        key = await self._store.update_key(name, lambda key: key.with_state(number, state, now))
        return _build_version(key, number)

    async def destroy_crypto_key_version(self, request: kms.DestroyCryptoKeyVersionRequest) -> kms.CryptoKeyVersion:
        """Schedules the destruction of a version's material."""
        name, number = resource_names.parse_version_name(request.name)
        now = self._store.clock()
        return _build_version(await self._store.update_key(name, lambda key: key.with_destruction(number, now)), number)

    async def restore_crypto_key_version(self, request: kms.RestoreCryptoKeyVersionRequest) -> kms.CryptoKeyVersion:
        """Cancel a scheduled destruction; the version is DISABLED then."""
        name, number = resource_names.parse_version_name(request.name)
        return _build_version(await self._store.update_key(name, lambda key: key.with_restored_version(number)), number)


def _build_version(key: Key, number: int) -> kms.CryptoKeyVersion:
    return build_crypto_key_version(key, key.version(number))


def _check_durations(key: Key) -> Key:
    """Check that the service would accept the key's durations.

    The bounds: https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#cryptokey and, for the destruction,
    https://cloud.google.com/kms/docs/create-key#soft_delete.
    """
    if not 24 * _HOUR <= key.destroy_scheduled_duration <= 120 * 24 * _HOUR:
        raise invalid_argument("The destroy_scheduled_duration must be at least 24 hours and at most 120 days.")
    if key.rotation_period is not None:
        if not 24 * _HOUR <= key.rotation_period <= 876_000 * _HOUR:
            raise invalid_argument("The rotation_period must be at least 24 hours and at most 876000 hours.")
        if key.next_rotation is None:
            raise invalid_argument("A rotation_period needs a next_rotation_time.")
    return key


def _check_supported(requested: kms.CryptoKey) -> None:
    if requested.purpose == kms.CryptoKey.CryptoKeyPurpose.CRYPTO_KEY_PURPOSE_UNSPECIFIED:
        raise invalid_argument("The purpose of a CryptoKey must be set.")
    if (
        requested.purpose != kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
        or requested.version_template.algorithm
        not in {0, _Algorithm.GOOGLE_SYMMETRIC_ENCRYPTION, _Algorithm.EXTERNAL_SYMMETRIC_ENCRYPTION}
    ):
        raise unimplemented("The emulator has keys of purpose ENCRYPT_DECRYPT only, with symmetric algorithms.")


def _get_level(requested: kms.CryptoKey) -> str:
    level = kms.CryptoKey.pb(requested).version_template.protection_level
    return _get_enum_name(kms.ProtectionLevel, level) if level else "SOFTWARE"


def _get_access_reasons(requested: kms.CryptoKey) -> tuple[str, ...] | None:
    key = kms.CryptoKey.pb(requested)
    if not key.HasField("key_access_justifications_policy"):
        return None
    reasons = key.key_access_justifications_policy.allowed_access_reasons
    return tuple(_get_enum_name(kms.AccessReason, reason) for reason in reasons)


def _get_enum_name(enum: type[IntEnum], value: int) -> str:
    if value not in set(enum):
        raise invalid_argument(f"{value} is no {enum.__name__} that the emulator knows.")
    return enum(value).name


# proto-plus gives timedelta and datetime, or None where the field is unset, whatever its annotations say.
def _to_seconds(duration: Any) -> float | None:
    return float(duration.total_seconds()) if duration else None


def _to_unix_seconds(time: Any) -> float | None:
    return float(time.timestamp()) if time else None
