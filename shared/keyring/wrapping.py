"""Wraps and unwraps data keys: by KMS, and by the service's local key where it has one.

A wrap is unwrapped again and compared, and an unwrapped data key must have the fingerprint that was stored.
"""

import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey, build_wrapping_aad, compute_fingerprint
from shared.kms.port import KmsError, KmsKey
from shared.kms.reason import Cause, Reason, Scope
from shared.kms.registry import may_name, normalise_key_name


class UnwrapError(Exception):
    """This data key cannot be unwrapped; others may be. The message says why, and holds no key material."""

    def __init__(self, message: str, *, is_foreign: bool = False, is_of_version: bool = False) -> None:
        super().__init__(message)
        self.is_foreign = is_foreign
        """Whether only a key that is not ours could unwrap it."""
        self.is_of_version = is_of_version
        """Whether it could be unwrapped if its version were enabled."""


class LocalKeyWrapper(Protocol):
    """A key of the service's own, such as on its disk."""

    def unwrap(self, ciphertext: bytes, aad: bytes) -> bytes:
        """What was wrapped. Raises ValueError where it was something else, or by another key."""
        ...


@dataclass(frozen=True, slots=True)
class KeyWrapper:
    kms: KmsKey
    kek: str
    """Full name of `kms`'s key."""
    timeout: float
    """Of one call, in seconds."""
    local_wrapper: LocalKeyWrapper | None = None
    previous: Mapping[str, KmsKey] = field(default_factory=dict)
    """Keys that only unwrap, by their full names."""

    def change_keys(self, change: Callable[[KmsKey], KmsKey]) -> Self:
        """The same with other calls of each KMS key, such as within its quota."""
        previous = {name: change(key) for name, key in self.previous.items()}
        return replace(self, kms=change(self.kms), previous=previous)

    def find_name(self, kek: str) -> str | None:
        """The full name of the KMS key that unwraps what `kek`, in any spelling, wrapped; None as in `find_key`."""
        name = normalise_key_name(kek)
        if name in self.previous:
            return name
        return self.kek if kek != LOCAL_KEK and may_name(kek, self.kek) else None

    def find_key(self, kek: str) -> KmsKey | None:
        """The KMS key that unwraps what `kek` wrapped; None where it is another one, or the local key."""
        name = self.find_name(kek)
        return None if name is None else self.previous.get(name, self.kms)

    def is_previous(self, kek: str) -> bool:
        """Whether a key unwraps it that wraps nothing any more."""
        return self.find_name(kek) in self.previous

    async def wrap(self, data_key_id: str, secret: bytes) -> WrappedKey:
        return await self.wrap_with_aad(build_wrapping_aad(data_key_id), secret)

    async def wrap_with_aad(self, aad: bytes, secret: bytes) -> WrappedKey:
        """Wraps by KMS, and unwraps again: a wrap that does not give the key back must never replace one that does.

        Raises KmsError.
        """
        encrypted = await self.kms.encrypt(secret, aad, timeout=self.timeout)
        decrypted = await self.kms.decrypt(encrypted.ciphertext, aad, timeout=self.timeout)
        if not hmac.compare_digest(decrypted.plaintext, secret):
            raise KmsError(Reason.PLAINTEXT_MISMATCH, "decrypt: the plaintext is not the one that was encrypted")
        return WrappedKey(encrypted.ciphertext, self.kek, encrypted.version)

    async def unwrap(self, key: DataKey) -> bytes:
        """The data key in clear, proven by its fingerprint.

        Raises UnwrapError if this one cannot be unwrapped, KmsError if all of KMS is at fault.
        """
        if refusal := self.explain_refusal(key.wrapped):
            raise refusal
        secret = await self._decrypt(key.wrapped, key.wrapping_aad)
        if secret is None or not self._matches_fingerprint(secret, key):
            raise UnwrapError("what it unwraps to is not the key that was stored")
        return secret

    def _matches_fingerprint(self, secret: bytes, key: DataKey) -> bool:
        return hmac.compare_digest(compute_fingerprint(secret), key.fingerprint)

    def explain_refusal(self, wrapped: WrappedKey) -> UnwrapError | None:
        """Why it is not even tried."""
        if wrapped.kek == LOCAL_KEK and self.local_wrapper is None:
            return UnwrapError("it is wrapped by the service's local key, which only the service itself has")
        if wrapped.kek != LOCAL_KEK and self.find_key(wrapped.kek) is None:
            unnamed = f"it is wrapped by {wrapped.kek}, which neither `kms` nor `previous_kms` names"
            return UnwrapError(f"{unnamed}: add it to `previous_kms`", is_foreign=True)
        return None

    async def _decrypt(self, wrapped: WrappedKey, aad: bytes) -> bytes | None:
        if wrapped.kek == LOCAL_KEK and self.local_wrapper:
            with suppress(ValueError):
                return self.local_wrapper.unwrap(wrapped.ciphertext, aad)
            return None
        key = self.find_key(wrapped.kek) or self.kms
        try:
            return (await key.decrypt(wrapped.ciphertext, aad, timeout=self.timeout)).plaintext
        except KmsError as error:
            # A lasting failure of one version or ciphertext is of this data key; so is a previous key that is gone, but
            # not one whose mount or manager is. Any other one is of KMS as a whole.
            is_previous = self.is_previous(wrapped.kek)
            is_gone = is_previous and error.reason is Reason.KEY_NOT_FOUND and not error.cause
            # A soft-deleted key comes back with all its versions.
            is_lasting = not error.transient and error.cause is not Cause.SOFT_DELETED
            if (is_gone or error.reason.scope in {Scope.VERSION, Scope.CIPHERTEXT}) and is_lasting:
                is_of_version = error.reason.scope is Scope.VERSION
                of = f" of {wrapped.kek}" if is_previous else ""
                message = f"KMS: {error.label} (version {wrapped.kek_version or 'unknown'}{of})"
                raise UnwrapError(message, is_of_version=is_of_version) from None
            if is_previous:
                raise error.name_key(wrapped.kek) from None
            raise
