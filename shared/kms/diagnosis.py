"""Checks of a key for the command `doctor`: connection, round trip, each permission, and the clock."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from secrets import token_bytes
from typing import Final

from shared.check import Check, CheckError
from shared.kms.port import KmsError, KmsKey
from shared.kms.reason import Cause, Reason
from shared.kms.settings import ProviderSettings

MAX_CLOCK_SKEW_SECONDS: Final = 60.0
"""A service refuses a signed request, or a token, whose time differs too much from its own clock."""

_NO_SERVICE: Final = {Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.INTERNAL}
"""Reasons of a call that no KMS answers."""


def list_key_checks(
    key: str,
    kms: KmsKey,
    permissions: Sequence[str],
    *,
    timeout: float,
    address: str = "",
    clock: Callable[[], float] = time.time,
) -> list[Check]:
    """The checks of one KMS key, whose place in the configuration is `key`, such as `targets.0`.

    `permissions` are in the provider's words. `address` is the setting of the service's address, such as "`endpoint`
    (127.0.0.1:9010)"; empty for the usual one.
    """
    connection, round_trip = f"{key} connection", f"{key} round trip"
    unwanted = kms.profile.unwanted_permissions
    granted = _GrantedPermissions(kms, (*permissions, *unwanted), timeout, address)
    return [
        Check(connection, partial(_check_connection, kms, timeout, address)),
        Check(round_trip, partial(_check_round_trip, kms, timeout, address), connection),
        # On a key that does not exist nothing is granted, whatever the account may do.
        *(Check(f"{key} permission {each}", partial(granted.check, each), round_trip) for each in permissions),
        *(
            Check(f"{key} no permission {each}", partial(granted.refuse, each, harm), connection)
            for each, harm in unwanted.items()
        ),
        Check(f"{key} clock", partial(_check_clock, kms, timeout, clock), connection),
    ]


def list_previous_key_checks(
    settings: Iterable[ProviderSettings], keys: Mapping[str, KmsKey], timeout: float
) -> list[Check]:
    """The checks of keys that only unwrap; `keys` are by their full names."""
    checks = list[Check]()
    for number, each in enumerate(settings):
        key, kms, address = f"previous_kms.{number}", keys[each.key_name], each.address_setting
        granted = _GrantedPermissions(kms, each.profile.round_trip_permissions[1:], timeout, address)
        checks.append(Check(f"{key} connection", partial(_check_connection, kms, timeout, address)))
        checks += [
            Check(f"{key} permission {one}", partial(granted.check, one), f"{key} connection")
            for one in each.profile.round_trip_permissions[1:]
        ]
    return checks


def _advise(kms: KmsKey, reason: Reason, cause: Cause, address: str) -> str:
    if address and reason in _NO_SERVICE:
        return f"correct {address}, start what listens there, or check proxy and network to it"
    advice = kms.profile.advise(reason, cause).removesuffix(".")
    return advice[0].lower() + advice[1:]  # the second half of a line, not a sentence of its own


def _build_call_error(kms: KmsKey, error: KmsError, address: str) -> CheckError:
    advice = _advise(kms, error.reason, error.cause, address)
    told = f"{error.label}: {error.detail.removesuffix('.')}"
    return CheckError(told, advice, is_usable=error.reason is not Reason.KEY_NOT_FOUND)


async def _check_connection(kms: KmsKey, timeout: float, address: str) -> str:
    phases = await kms.measure_connectivity(timeout=timeout)
    failed = next((phase for phase in phases if phase.error), None)
    if failed:
        raise CheckError(str(failed.error), _advise(kms, Reason.UNAVAILABLE, failed.cause, address))
    return ", ".join(f"{phase.name} in {phase.seconds * 1000:.0f} ms" for phase in phases)


async def _check_round_trip(kms: KmsKey, timeout: float, address: str) -> str:
    plaintext, aad = token_bytes(32), token_bytes(16)
    try:
        encrypted = await kms.encrypt(plaintext, aad, timeout=timeout)
        decrypted = await kms.decrypt(encrypted.ciphertext, aad, timeout=timeout)
    except KmsError as error:
        raise _build_call_error(kms, error, address) from None
    if decrypted.plaintext != plaintext:
        raise CheckError(
            "decrypt gave back another plaintext than was encrypted",
            _advise(kms, Reason.PLAINTEXT_MISMATCH, Cause.NONE, address),
            is_usable=True,
        )
    return f"version {encrypted.version} encrypts and decrypts"


class _GrantedPermissions:
    """Reads the permissions once, for the checks of all of them: KMS has a quota of reads."""

    def __init__(self, kms: KmsKey, permissions: Sequence[str], timeout: float, address: str) -> None:
        self._kms = kms
        self._permissions = permissions
        self._timeout = timeout
        self._address = address
        self._granted: frozenset[str] | None = None
        self._reading = asyncio.Lock()

    async def check(self, permission: str) -> str:
        if permission not in await self._read():
            raise CheckError(
                "the account does not have it",
                _advise(self._kms, Reason.PERMISSION_DENIED, Cause.ROLE_MISSING, self._address),
            )
        return "granted"

    async def refuse(self, permission: str, harm: str) -> str:
        if permission in await self._read():
            raise CheckError(f"the account has it: {harm}", f"take `{permission}` from it", is_usable=True)
        return "not granted"

    async def _read(self) -> frozenset[str]:
        try:
            async with self._reading:
                if self._granted is None:
                    self._granted = await self._kms.check_permissions(self._permissions, timeout=self._timeout)
        except KmsError as error:
            raise _build_call_error(self._kms, error, self._address) from None
        return self._granted


async def _check_clock(kms: KmsKey, timeout: float, clock: Callable[[], float]) -> str:
    at_service = await kms.read_service_clock(timeout=timeout)
    if at_service is None:
        return "the service does not report its time"
    skew = clock() - at_service
    if abs(skew) > MAX_CLOCK_SKEW_SECONDS:
        which = "ahead of" if skew > 0 else "behind"
        raise CheckError(
            f"this machine's clock is {abs(skew):.0f} s {which} that of {kms.profile.service_name}",
            "set it by NTP, such as: timedatectl set-ntp true",
        )
    return f"within {MAX_CLOCK_SKEW_SECONDS:.0f} s of that of {kms.profile.service_name}"
