"""A KMS key whose calls are tried again after a failure that passes by itself.

A rotation makes hundreds of thousands of calls, and one that is lost must not end it. A service must not wait so long:
while KMS is out, it has a local key.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from shared.kms.port import DecryptResult, EncryptResult, KeyDescription, KeyVersion, KmsError, KmsKey, KmsKeyAdmin
from shared.kms.quota import LONGEST_PAUSE, QuotaLimitedKey
from shared.kms.reason import Reason

PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further try: an outage of a minute ends nothing."""

T = TypeVar("T")


class RetryingKey:
    """`kms` below its quota, with every call repeated while its failure is transient; all else passes through."""

    def __init__(self, kms: KmsKey) -> None:
        self._kms = limited = kms if isinstance(kms, QuotaLimitedKey) else QuotaLimitedKey(kms)
        self.profile = kms.profile
        self.measure_connectivity, self.read_service_clock = limited.measure_connectivity, limited.read_service_clock
        self.explain_denial, self.check_key_store, self.close = kms.explain_denial, kms.check_key_store, limited.close

    @property
    def account(self) -> str:
        return self._kms.account

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """`timeout` is that of each try, as for every method."""
        return await _retry(lambda: self._kms.encrypt(plaintext, aad, timeout=timeout), Reason.QUOTA_EXHAUSTED)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        return await _retry(lambda: self._kms.decrypt(ciphertext, aad, timeout=timeout), Reason.QUOTA_EXHAUSTED)

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        return await _retry(lambda: self._kms.describe_key(timeout=timeout))

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        return await _retry(lambda: self._kms.check_permissions(permissions, timeout=timeout))


class RetryingAdminKey(RetryingKey):
    """The same for a key whose versions are administered."""

    def __init__(self, kms: KmsKeyAdmin) -> None:
        super().__init__(kms)
        self._admin = kms
        self.schedule_destruction = kms.schedule_destruction  # KMS refuses a second one, where the first was done
        self.find_protected_resources = kms.find_protected_resources

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
        return await _retry(lambda: self._admin.set_version_enabled(version, is_enabled=is_enabled, timeout=timeout))


async def _retry(call: Callable[[], Awaitable[T]], own_retries: Reason | None = None) -> T:
    """Repeats `call`, which retries for the reason `own_retries` itself. Raises KmsError."""
    for pause in PAUSES:
        try:
            return await call()
        except KmsError as error:
            if not error.transient or error.reason is own_retries:
                raise
            pause = max(pause, min(error.retry_after or 0.0, LONGEST_PAUSE))  # noqa: PLW2901  # as KMS asks for
        await asyncio.sleep(pause)
    return await call()
