"""What becomes of a key, at a slower beat than the probe: key and canaries in → KeySnapshot.

It reads the key, its versions and its permissions, decrypts what older versions encrypted, and sees that a wrong AAD is
refused. Where canaries are kept is not known here: a function is handed over.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Final, Protocol, TypeVar

import structlog

from services.exporter.call import AAD_BYTES, PLAINTEXT_BYTES, tried
from services.exporter.model import Call, Canary, Failure, KeptCiphertext, KeySnapshot, Operation, Read
from shared.kms.provider import KeyDescription, KeyProvider
from shared.kms.reason import Reason

READS_A_MINUTE: Final = 200.0
"""What all targets together read, at most. Cloud KMS grants a project 300; a third is left to people and others.

Encrypt and Decrypt are no reads: their quota is 60,000. https://cloud.google.com/kms/quotas
"""
READS: Final = 3
"""Of one look at a key: the key, its versions (1,000 a read), its permissions."""
LEAST_SECONDS: Final = 60.0
"""Between two looks at one key."""
AT_ONCE: Final = 10
"""Canaries decrypted at the same time: where nothing answers, 100 of them are done within ten timeouts."""
FORGET_SECONDS: Final = 86400.0
"""How long a canary goes on failing after its version was destroyed: a day to see that it was no mistake."""

NEVER_NEEDED: Final = frozenset(
    {"DESTROYED", "PENDING_GENERATION", "GENERATION_FAILED", "PENDING_IMPORT", "IMPORT_FAILED"}
)
"""States of versions that are gone for good, or have never encrypted anything."""

PERMISSIONS: Final = (
    "cloudkms.cryptoKeyVersions.useToEncrypt",
    "cloudkms.cryptoKeyVersions.useToDecrypt",
    "cloudkms.cryptoKeys.get",
    "cloudkms.cryptoKeyVersions.list",
)
"""What the exporter needs, by https://cloud.google.com/kms/docs/reference/permissions-and-roles."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


def beat(targets: int, reads_per_target: float = READS) -> float:
    """Seconds between two looks at one target, so that all of them keep to `READS_A_MINUTE`; `LEAST_SECONDS` or more.

    The first looks have to be spread over one such beat, too.
    """
    return max(LEAST_SECONDS, targets * reads_per_target / READS_A_MINUTE * 60)


class Sync(Protocol):
    """Where canaries are kept: adds one, forgets some, and gives those that are known, with problem sentences."""

    def __call__(
        self, add: KeptCiphertext | None = None, forget: Collection[str] = ()
    ) -> Awaitable[tuple[Sequence[KeptCiphertext], Sequence[str]]]:
        """Raises nothing for what is broken: that is a sentence."""
        ...


async def keep_none(add: KeptCiphertext | None = None, forget: Collection[str] = ()) -> tuple[tuple[()], tuple[()]]:  # noqa: ARG001
    """For a target without `canary_dir`."""
    return (), ()


@dataclass(slots=True)
class _Last:
    """The canary that was made last, for the check with the wrong AAD where none is kept."""

    canary: KeptCiphertext | None = None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Looks at one target's key. Its provider should not be the prober's: a timeout closes the connection for both."""

    service: str
    target: str
    key: KeyProvider
    timeout: float
    """Seconds for each call."""
    sync: Sync = keep_none
    monotonic: Callable[[], float] = time.perf_counter
    wall: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = token_bytes
    _last: _Last = field(default_factory=_Last, repr=False)

    async def read(self) -> KeySnapshot:
        """One look. Raises nothing but cancellation: what cannot be read is None, with a sentence why.

        A read that fails counts as one call, however far it came.
        """
        problems: list[str] = []
        failure, description = await self._told(
            "the key cannot be read", lambda: self.key.describe(timeout=self.timeout), problems
        )
        granted: frozenset[str] | None = None
        is_there = failure is None or failure.reason is not Reason.KEY_NOT_FOUND
        if is_there:  # of a key that is not, IAM grants nothing, whatever the account may do
            _, granted = await self._told(
                "its permissions cannot be read",
                lambda: self.key.permissions(PERMISSIONS, timeout=self.timeout),
                problems,
            )
        kept = await self._synced(problems)
        primary = description.primary if description else None
        present = next((one for one in (*kept, self._last.canary) if one and one.version == primary), None)
        encrypt = None
        if present is None:
            encrypt, present = await self._new_canary(problems)
            self._last.canary = present
        await self._settled(kept, present, self._over(description), problems)
        newest = primary or next((one.version for one in (present, *reversed(kept)) if one), None)
        return KeySnapshot(
            self.service,
            self.target,
            canaries=await self._canaries([one for one in kept if one.version != newest]),
            wrong_aad=await self._wrong_aad(present, problems) if present else None,
            at=self.wall(),
            description=description,
            permissions=None if granted is None else {one: one in granted for one in PERMISSIONS},
            reads=_reads(description, permissions=is_there),
            problems=tuple(dict.fromkeys(problems)),
            encrypt=encrypt,
            without_canary=self._without([one.version for one in (*kept, present) if one], description),
        )

    def _without(self, kept: Collection[str], description: KeyDescription | None) -> tuple[str, ...] | None:
        if description is None or self.sync is keep_none:
            return None
        older = int(description.primary) if description.primary else math.inf
        needed = [one.number for one in description.versions if one.state not in NEVER_NEEDED]
        without = (number for number in needed if int(number) < older and number not in kept)
        return tuple(sorted(without, key=int, reverse=True))

    def _over(self, description: KeyDescription | None) -> frozenset[str]:
        """The versions that have been destroyed for so long that their canaries end."""
        then = self.wall() - FORGET_SECONDS
        versions = description.versions if description else ()
        return frozenset(one.number for one in versions if one.destroyed_at is not None and one.destroyed_at < then)

    async def _new_canary(self, problems: list[str]) -> tuple[Call, KeptCiphertext | None]:
        plaintext, aad = self.random_bytes(PLAINTEXT_BYTES), self.random_bytes(AAD_BYTES)
        seconds, failure, encrypted = await self._tried(lambda: self.key.encrypt(plaintext, aad, timeout=self.timeout))
        call = Call(Operation.ENCRYPT, seconds, failure)
        if encrypted is None:
            problems.append(_sentence("no canary could be made", failure))
            return call, None
        # Not the version that was described: Cloud KMS may go on encrypting with the old primary for a while.
        version = encrypted.key_version.rpartition("/")[2]
        digest = hashlib.sha256(plaintext).digest()
        return call, KeptCiphertext(version, aad, encrypted.ciphertext, digest, self.wall())

    async def _settled(
        self, kept: Sequence[KeptCiphertext], present: KeptCiphertext | None, over: Collection[str], problems: list[str]
    ) -> None:
        """Keeps what is new, and forgets what is over."""
        versions = [one.version for one in kept]
        forget = [version for version in versions if version in over]
        add = present if present and present.version not in versions else None
        if forget:
            log.warning("canaries are forgotten: their versions are destroyed", target=self.target, versions=forget)
        if add or forget:
            await self._synced(problems, add, forget)

    async def _canaries(self, older: Sequence[KeptCiphertext]) -> tuple[Canary, ...]:
        places = asyncio.Semaphore(AT_ONCE)

        async def decrypted(kept: KeptCiphertext) -> Canary:
            async with places:
                seconds, failure, answer = await self._tried(
                    lambda: self.key.decrypt(kept.ciphertext, kept.aad, timeout=self.timeout)
                )
            if answer and hashlib.sha256(answer.plaintext).digest() != kept.plaintext_sha256:
                failure = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt gave back another plaintext than was encrypted")
            return Canary(kept.version, Call(Operation.CANARY_DECRYPT, seconds, failure))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(decrypted(kept)) for kept in older]
        return tuple(task.result() for task in tasks)

    async def _wrong_aad(self, kept: KeptCiphertext, problems: list[str]) -> Call | None:
        wrong = kept.aad + b"\0"
        seconds, failure, answer = await self._tried(
            lambda: self.key.decrypt(kept.ciphertext, wrong, timeout=self.timeout)
        )
        if failure and failure.reason is Reason.INVALID_REQUEST:
            return Call(Operation.DECRYPT, seconds)
        # A checksum is looked at when there is a plaintext.
        if answer or (failure and failure.reason is Reason.CRC_MISMATCH):
            accepted = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt accepted another AAD than was encrypted with")
            return Call(Operation.DECRYPT, seconds, accepted)
        problems.append(_sentence("whether a wrong AAD is refused is not known", failure))
        return None

    async def _synced(
        self, problems: list[str], add: KeptCiphertext | None = None, forget: Collection[str] = ()
    ) -> Sequence[KeptCiphertext]:
        _, answer = await self._told("the canaries cannot be used", lambda: self.sync(add, forget), problems)
        kept, broken = answer or ((), ())
        problems.extend(broken)
        return kept

    async def _told(
        self, what: str, call: Callable[[], Awaitable[T]], problems: list[str]
    ) -> tuple[Failure | None, T | None]:
        _, failure, answer = await self._tried(call)
        if failure:
            problems.append(_sentence(what, failure))
        return failure, answer

    async def _tried(self, call: Callable[[], Awaitable[T]]) -> tuple[float, Failure | None, T | None]:
        seconds, failure, answer = await tried(call, timeout=self.timeout, monotonic=self.monotonic)
        if failure and failure.error:
            log.error("a look at a key met a defect", target=self.target, exc_info=failure.error)
        return seconds, failure, answer


def _reads(description: KeyDescription | None, *, permissions: bool) -> Mapping[Read, int]:
    listed = description.reads - 1 if description else 0
    return {Read.GET_KEY: 1, Read.LIST_VERSIONS: listed, Read.TEST_PERMISSIONS: int(permissions)}


def _sentence(what: str, failure: Failure | None) -> str:
    return f"{what}: {failure.reason}: {failure.detail}" if failure else what
