"""Faults of the emulator. `grpc_service` consults them before each call and after each response."""

import asyncio
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, Self

import grpc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ops.kms_emulator.causes import CAUSES, build_refusal
from ops.kms_emulator.model import StatusError
from shared.kms.gcp.client import compute_crc32c
from shared.kms.gcp.profile import check_key_name

PERMISSIONS: Final = {
    "CreateKeyRing": "cloudkms.keyRings.create",
    "GetKeyRing": "cloudkms.keyRings.get",
    "ListKeyRings": "cloudkms.keyRings.list",
    "CreateCryptoKey": "cloudkms.cryptoKeys.create",
    "GetCryptoKey": "cloudkms.cryptoKeys.get",
    "ListCryptoKeys": "cloudkms.cryptoKeys.list",
    "UpdateCryptoKey": "cloudkms.cryptoKeys.update",
    "UpdateCryptoKeyPrimaryVersion": "cloudkms.cryptoKeys.update",
    "CreateCryptoKeyVersion": "cloudkms.cryptoKeyVersions.create",
    "GetCryptoKeyVersion": "cloudkms.cryptoKeyVersions.get",
    "ListCryptoKeyVersions": "cloudkms.cryptoKeyVersions.list",
    "UpdateCryptoKeyVersion": "cloudkms.cryptoKeyVersions.update",
    "DestroyCryptoKeyVersion": "cloudkms.cryptoKeyVersions.destroy",
    "RestoreCryptoKeyVersion": "cloudkms.cryptoKeyVersions.restore",
    "CreateEkmConnection": "cloudkms.ekmConnections.create",
    "GetEkmConnection": "cloudkms.ekmConnections.get",
    "GetProtectedResourcesSummary": "cloudkms.cryptoKeys.get",
    "VerifyConnectivity": "cloudkms.ekmConnections.verifyConnectivity",
    "CreateSingleTenantHsmInstance": "cloudkms.singleTenantHsmInstances.create",
    "GetSingleTenantHsmInstance": "cloudkms.singleTenantHsmInstances.get",
    "ExecuteSingleTenantHsmInstanceProposal": "cloudkms.singleTenantHsmInstanceProposals.execute",
    "Encrypt": "cloudkms.cryptoKeyVersions.useToEncrypt",
    "Decrypt": "cloudkms.cryptoKeyVersions.useToDecrypt",
}
TEST_IAM_PERMISSIONS: Final = "TestIamPermissions"
"""The operation that needs no permission."""
OPERATIONS: Final = (*PERMISSIONS, TEST_IAM_PERMISSIONS)


_OPERATIONS_BY_KIND: Final = {
    "latency": OPERATIONS,
    "stall": OPERATIONS,
    "status": OPERATIONS,
    "cause": OPERATIONS,
    "corrupt_crc": ("Encrypt", "Decrypt"),
    "wrong_plaintext": ("Decrypt",),
    "denied": tuple(PERMISSIONS),
    "slow_primary": ("Encrypt",),
    "slow_disable": ("Encrypt", "Decrypt"),
    "no_project_role": tuple(PERMISSIONS),
}
_OPERATIONS_BY_CAUSE: Final = {
    "role_missing": tuple(PERMISSIONS),
    "justification": ("Encrypt", "Decrypt"),
    "ekm": ("Encrypt", "Decrypt", "CreateCryptoKeyVersion", "VerifyConnectivity"),
}
"""By the beginning of a cause; others can happen to every operation."""
_OPERATIONS_WITHOUT_KEY: Final = {
    *("CreateKeyRing", "GetKeyRing", "ListKeyRings", "CreateCryptoKey", "ListCryptoKeys"),
    *("CreateEkmConnection", "GetEkmConnection", "CreateSingleTenantHsmInstance", "GetSingleTenantHsmInstance"),
    "ExecuteSingleTenantHsmInstanceProposal",
}


def _one_of(names: Iterable[str]) -> AfterValidator:
    expected = tuple(dict.fromkeys(names))

    def check(name: str) -> str:
        if name not in expected:
            raise ValueError(f"expected one of {', '.join(filter(None, expected))}")
        return name

    return AfterValidator(check)


def _check_status(name: str) -> str:
    if name == "OK" or name not in grpc.StatusCode.__members__:
        raise ValueError("expected the name of a gRPC status other than OK, such as UNAVAILABLE")
    return name


class EmulatorFault(BaseModel):
    """A fault. A field that is None matches any value; a `kind` ignores the fields that it does not name.

    - `latency`: the answer comes `seconds` later.
    - `stall`: no answer comes, until the caller gives up or the emulator stops.
    - `status`: the answer is `status`, with `message`.
    - `corrupt_crc`: the CRC32C in the answer of Encrypt or Decrypt is wrong.
    - `wrong_plaintext`: Decrypt answers other bytes, with the right CRC32C for them.
    - `denied`: `permission` (or the one that `operation` needs) is refused: TestIamPermissions does not list it, and
      every operation that needs it answers PERMISSION_DENIED.
    - `cause`: the answer is what Cloud KMS says for `cause`, with `message` instead of its text, and `seconds` as
      RetryInfo. `role_missing` is refused as `denied` is; `ekm_…` and `justification` come with the use of a key.
    - `slow_primary`: Encrypt on the key goes on with the old primary for `seconds` after each change of the primary.
    - `slow_disable`: a version can be used for `seconds` after it was disabled or scheduled for destruction.
    - `no_project_role`: the caller has roles on keys, none on their project: a missing key or key ring is denied.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Annotated[str, _one_of(_OPERATIONS_BY_KIND)]
    key: Annotated[str, AfterValidator(check_key_name)] | None = None
    operation: Annotated[str, _one_of(OPERATIONS)] | None = None
    probability: float = Field(1.0, gt=0, le=1)
    count: int | None = Field(None, ge=1)
    """How many calls it applies to; TestIamPermissions does not count."""
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    status: Annotated[str, AfterValidator(_check_status)] = "UNAVAILABLE"
    message: str | None = None
    permission: Annotated[str, _one_of(PERMISSIONS.values())] | None = None
    cause: Annotated[str, _one_of(("", *CAUSES))] = ""
    """Of `causes.yml`, such as `perimeter` or `project_unusable/suspended`."""

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.kind in {"latency", "slow_primary", "slow_disable"} and self.seconds is None:
            raise ValueError(f"{self.kind} needs `seconds`")
        if (self.kind == "cause") != bool(self.cause):
            raise ValueError("kind cause and the field `cause` need each other")
        if self.operation and self.operation not in self.operations:
            raise ValueError(f"{self.cause or self.kind} never happens to {self.operation}")
        if self.key and self.operation in _OPERATIONS_WITHOUT_KEY:
            raise ValueError(f"{self.operation} is about no key that exists; leave `key` out")
        if self.takes_permission and self.operation and self.permission not in {None, PERMISSIONS[self.operation]}:
            raise ValueError(f"{self.operation} needs {PERMISSIONS[self.operation]}, not {self.permission}")
        return self

    @property
    def operations(self) -> Sequence[str]:
        """What it can happen to."""
        if self.cause:
            return _OPERATIONS_BY_CAUSE.get(re.split("/|(?<=ekm)_", self.cause)[0], OPERATIONS)
        return _OPERATIONS_BY_KIND[self.kind]

    @property
    def takes_permission(self) -> bool:
        """Whether it revokes permissions."""
        return self.kind == "denied" or self.cause.startswith("role_missing")

    def denies(self, permission: str) -> bool:
        """Whether it revokes this permission."""
        by_operation = self.operation is None or PERMISSIONS[self.operation] == permission
        return self.takes_permission and self.permission in {None, permission} and by_operation


class EmulatorFaults:
    """The faults that are active. For one event loop.

    Args:
        random: a number in [0, 1) for each call that a fault with a `probability` could meet.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._active: dict[str, EmulatorFault] = {}
        self._ids = itertools.count(1)

    def add(self, fault: EmulatorFault) -> str:
        """Add a fault; return its id."""
        id_ = str(next(self._ids))
        self._active[id_] = fault
        return id_

    def remove(self, id_: str) -> bool:
        """Heals one fault; whether there was one."""
        return self._active.pop(id_, None) is not None

    def clear(self) -> None:
        """Heals everything. A call that stalls already goes on stalling: nothing brings a lost answer back."""
        self._active.clear()

    def list_active(self) -> dict[str, EmulatorFault]:
        """Return the active faults by id; `count` is what remains."""
        return dict(self._active)

    def match(
        self,
        kind: str,
        operation: str,
        key: str | None,
        is_match: Callable[[EmulatorFault], bool] = lambda _: True,
    ) -> EmulatorFault | None:
        """Return the fault of this kind that applies to this call, or None; count it as applied.

        Args:
            kind: of the fault.
            operation: the method's name, such as `Encrypt`.
            key: of the call, if it has one.
            is_match: further condition on the fault.
        """
        for id_, fault in self._active.items():
            # A permission is shared by operations, and asked for: see EmulatorFault.denies.
            meant = fault.takes_permission or fault.operation in {None, operation}
            if fault.kind != kind or fault.key not in {None, key} or not meant or not is_match(fault):
                continue
            if fault.probability < 1 and self._random() >= fault.probability:
                continue
            if fault.count == 1:
                del self._active[id_]
            elif fault.count:
                self._active[id_] = fault.model_copy(update={"count": fault.count - 1})
            return fault
        return None

    def denies(self, permission: str, key: str) -> bool:
        """Whether this permission is refused on this key, for TestIamPermissions; meets nothing."""
        return any(fault.key in {None, key} and fault.denies(permission) for fault in self._active.values())

    async def apply_before(self, operation: str, resource: str, key: str | None) -> None:
        """Apply faults before a call runs. Raises StatusError.

        Args:
            operation: the method's name.
            resource: the name that a refusal quotes.
            key: of the call, if it has one.
        """
        if (latency := self.match("latency", operation, key)) and latency.seconds:
            await asyncio.sleep(latency.seconds)
        if self.match("stall", operation, key):
            await asyncio.Event().wait()
        permission = PERMISSIONS.get(operation, "")
        if permission and self.match("denied", operation, key, lambda fault: fault.denies(permission)):
            raise build_refusal("role_missing/no_details", operation, resource, permission=permission)
        if found := self.match("cause", operation, key, lambda fault: _is_refused(fault, operation)):
            call = (operation, resource, found.message, found.seconds)
            raise build_refusal(found.cause, *call, permission=permission)
        if status := self.match("status", operation, key):
            default = f"The emulator was told to answer {status.status}."
            raise StatusError(grpc.StatusCode[status.status], status.message or default)

    def match_external(self, operation: str, key: str, version: str) -> StatusError | None:
        """What the external key manager of a key answers, if it refuses; `version` is the name of what it refuses."""
        found = self.match("cause", operation, key, lambda fault: fault.cause.startswith("ekm_"))
        return build_refusal(found.cause, operation, version, found.message) if found else None

    def hide(self, error: StatusError, operation: str, resource: str, key: str | None) -> StatusError:
        """Return the answer to a call that failed: `no_project_role` does not tell that something is not there."""
        is_missing = error.code is grpc.StatusCode.NOT_FOUND and not error.message.startswith("CryptoKeyVersion ")
        if is_missing and self.match("no_project_role", operation, key):
            permission = PERMISSIONS[operation]
            return build_refusal("role_missing/no_details", operation, resource, permission=permission)
        return error

    def apply_after(self, operation: str, key: str | None, answer: Any) -> None:
        """Spoils the answer of a call that was carried out."""
        unjustified = (fault for fault in self._active.values() if fault.cause == "justification")
        if operation == "GetCryptoKey" and any(fault.key in {None, key} for fault in unjustified):
            answer.key_access_justifications_policy = {}  # allows nothing
        if operation == "Decrypt" and self.match("wrong_plaintext", operation, key):
            answer.plaintext = bytes(byte ^ 0xFF for byte in answer.plaintext) or b"\xff"
            answer.plaintext_crc32c = compute_crc32c(answer.plaintext)
        if operation in _OPERATIONS_BY_KIND["corrupt_crc"] and self.match("corrupt_crc", operation, key):
            checksum = "ciphertext_crc32c" if operation == "Encrypt" else "plaintext_crc32c"
            setattr(answer, checksum, getattr(answer, checksum) ^ 1)


def _is_refused(fault: EmulatorFault, operation: str) -> bool:
    if fault.takes_permission:
        return operation in PERMISSIONS and fault.denies(PERMISSIONS[operation])
    return operation in fault.operations and not fault.cause.startswith("ekm_")  # see match_external
