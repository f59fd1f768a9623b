"""A key, its versions and their transitions. Pure: each change returns a new Key or raises FAILED_PRECONDITION.

The states and their transitions: https://cloud.google.com/kms/docs/key-states
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

import grpc
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.rpc.error_details_pb2 import PreconditionFailure
from google.rpc.status_pb2 import Status


class StatusError(Exception):
    """Ends a call with `code` and `message`; `grpc_service` turns it into the response.

    `details` is a serialized google.rpc.Status, or bytes that are none; empty where the answer has no details. `cause`
    is of `causes.yml`, or empty.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: bytes = b"", cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.code = code
        self.message = message
        self.details = details


def invalid_argument(message: str) -> StatusError:
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def failed_precondition(message: str) -> StatusError:
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)


def not_found(kind: str, name: str) -> StatusError:
    """`kind` is the resource's type, such as `CryptoKey`."""
    return StatusError(grpc.StatusCode.NOT_FOUND, f"{kind} {name} not found.")


def already_exists(kind: str, name: str) -> StatusError:
    """`kind` is the resource's type, such as `KeyRing`."""
    return StatusError(grpc.StatusCode.ALREADY_EXISTS, f"{kind} {name} already exists.")


def unimplemented(message: str) -> StatusError:
    return StatusError(grpc.StatusCode.UNIMPLEMENTED, message)


DEFAULT_DESTROY_SCHEDULED_DURATION = 30 * 86400.0
"""Seconds; `destroy_scheduled_duration` of a key that was created without one."""


class EmulatedState(StrEnum):
    """The states that a version of the emulator can have, by Google's own names."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"
    IMPORT_FAILED = "IMPORT_FAILED"
    GENERATION_FAILED = "GENERATION_FAILED"
    EXTERNAL_DESTRUCTION_FAILED = "EXTERNAL_DESTRUCTION_FAILED"


EXTERNAL_LEVELS: Final = ("EXTERNAL", "EXTERNAL_VPC")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a key. All times are Unix seconds."""

    number: int
    state: EmulatedState
    created_at: float
    material: bytes | None = field(repr=False)
    """32 bytes of AES-256; None once destroyed."""
    destroy_time: float | None = None
    destroy_event_time: float | None = None
    disabled_at: float | None = None
    """When it was ENABLED for the last time; a slow change goes on using it."""
    external_key: str = ""
    """The URI, or in a connection the path, of a key in an external key manager."""
    failure_reason: str = ""
    """Of a state that ends with FAILED."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key with every version it ever had; version N stands at index N - 1."""

    name: str
    created_at: float
    versions: tuple[Version, ...] = ()
    primary: int | None = None
    previous_primary: int | None = None
    """The primary before the last change; a slow change still encrypts with it."""
    primary_changed: float = 0.0
    destroy_scheduled_duration: float = DEFAULT_DESTROY_SCHEDULED_DURATION
    labels: dict[str, str] = field(default_factory=dict)
    rotation_period: float | None = None
    next_rotation: float | None = None
    protection_level: str = "SOFTWARE"
    """By Google's own name."""
    backend: str = ""
    """`crypto_key_backend`: the EKM connection or single-tenant HSM instance that the key is in."""
    allowed_access_reasons: tuple[str, ...] | None = None
    """Of its key access justifications policy: None is no policy and allows all, an empty one allows nothing."""

    def version_name(self, number: int) -> str:
        """The full resource name of a version."""
        return f"{self.name}/cryptoKeyVersions/{number}"

    def version(self, number: int) -> Version:
        """A version by its number. Raises NOT_FOUND."""
        if not 1 <= number <= len(self.versions):
            raise not_found("CryptoKeyVersion", self.version_name(number))
        return self.versions[number - 1]

    def get_usable_material(self, number: int) -> bytes:
        """The material of an ENABLED version. Raises FAILED_PRECONDITION in every other state."""
        version = self.version(number)
        if version.state is not EmulatedState.ENABLED or version.material is None:
            raise self._build_state_error("is not enabled", version)
        return version.material

    def with_due_changes(self, now: float) -> Self:
        """Return this key at that time: versions past `destroy_time` are DESTROYED, and a due rotation is done."""
        key = replace(
            self,
            versions=tuple(
                # Cloud KMS destroys at some time after destroy_time; here it is exactly then.
                replace(
                    version,
                    state=EmulatedState.DESTROYED,
                    material=None,
                    destroy_time=None,
                    destroy_event_time=version.destroy_time,
                )
                if version.destroy_time is not None and version.destroy_time <= now
                else version
                for version in self.versions
            ),
        )
        due, period = self.next_rotation, self.rotation_period
        if due is None or due > now:
            return key
        # A plan that was missed more than once, while nobody asked for the key, is carried out once.
        key = replace(key, next_rotation=due + ((now - due) // period + 1) * period if period else None)
        return key.with_new_version(create_material(), due).with_primary(len(key.versions) + 1, due)

    def with_new_version(
        self, material: bytes, now: float, *, state: EmulatedState = EmulatedState.ENABLED, **more: Any
    ) -> Self:
        """Add a version; the primary stays the same. `more` is `external_key` and `failure_reason`."""
        version = Version(len(self.versions) + 1, state, now, material, **more)
        return replace(self, versions=(*self.versions, version))

    def with_primary(self, number: int, now: float) -> Self:
        """Another primary version, which must be ENABLED."""
        self.get_usable_material(number)
        if number == self.primary:
            return self
        return replace(self, primary=number, previous_primary=self.primary, primary_changed=now)

    def with_state(self, number: int, state: EmulatedState, now: float = 0.0) -> Self:
        """Enables or disables a version; only one that is ENABLED or DISABLED."""
        expected = (EmulatedState.ENABLED, EmulatedState.DISABLED)
        return self._change(number, expected, "is neither enabled nor disabled", now, state=state)

    def with_destruction(self, number: int, now: float) -> Self:
        """Schedules the destruction of a version that is ENABLED or DISABLED."""
        expected = (EmulatedState.ENABLED, EmulatedState.DISABLED)
        due = now + self.destroy_scheduled_duration
        return self._change(
            number, expected, "cannot be destroyed", now, state=EmulatedState.DESTROY_SCHEDULED, destroy_time=due
        )

    def with_restored_version(self, number: int) -> Self:
        """Cancel a scheduled destruction: the version is DISABLED afterwards."""
        expected = (EmulatedState.DESTROY_SCHEDULED,)
        refusal = "is not scheduled for destruction"
        return self._change(number, expected, refusal, 0.0, state=EmulatedState.DISABLED, destroy_time=None)

    def _change(
        self, number: int, expected: tuple[EmulatedState, ...], refusal: str, now: float, **changes: Any
    ) -> Self:
        version = self.version(number)
        if version.state not in expected:
            raise self._build_state_error(refusal, version)
        if version.state is EmulatedState.ENABLED:
            changes["disabled_at"] = now
        return replace(
            self, versions=(*self.versions[: number - 1], replace(version, **changes), *self.versions[number:])
        )

    def _build_state_error(self, what: str, version: Version) -> Exception:
        name = self.version_name(version.number)
        error = failed_precondition(f"{name} {what}, current state is: {version.state}.")
        status = Status(code=error.code.value[0], message=error.message)
        violation = PreconditionFailure.Violation(type=f"KEY_{version.state}", subject=name)
        status.details.add().Pack(PreconditionFailure(violations=[violation]))
        error.details = status.SerializeToString()
        return error


def create_material() -> bytes:
    """The secret of a new version: 32 random bytes."""
    return AESGCM.generate_key(256)
