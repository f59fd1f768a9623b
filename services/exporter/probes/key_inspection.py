"""Inspects a key, less often than it is probed: key and canaries in → KeyInspection.

Reads the key, its versions and the account's permissions, checks what holds the key in place of KMS, decrypts what
older versions encrypted, and checks that a wrong AAD is refused. A function stores the canaries.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import token_bytes
from typing import Final, TypeVar

import structlog

from services.exporter.model import Call, Canary, CanaryResult, Failure, KeyInspection, KeyRead, Operation
from services.exporter.probes.round_trip import AAD_BYTES, PLAINTEXT_BYTES, time_call
from shared.credentials import Credentials
from shared.kms.port import KeyDescription, KeyStore, KeyStoreKind, KmsKey
from shared.kms.reason import Cause, Reason, Scope

MAX_CONCURRENT_DECRYPTIONS: Final = 10
"""Canaries decrypted at the same time: where nothing answers, 100 of them are done within ten timeouts."""
DESTROYED_CANARY_MAX_AGE: Final = 86400.0
"""How long a canary continues failing after its version was destroyed: a day to see that it was no mistake."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


SyncCanaries = Callable[[Canary | None, Collection[str]], Awaitable[tuple[Sequence[Canary], Sequence[str]]]]
"""Adds a canary, forgets those of some versions, and returns all that are known, with a sentence for each problem."""


@dataclass(slots=True)
class KeyInspector:
    """Inspects one target's key. The key should not be the prober's: a timeout closes the connection for both."""

    service: str
    target: str
    key: KmsKey
    timeout: float
    """Seconds for each call."""
    sync_canaries: SyncCanaries | None = None
    """None where no canaries are kept."""
    read_credentials: Callable[[], Credentials] = dict
    """It may block. A token's end is known once a call has used it."""
    clock: Callable[[], float] = time.perf_counter
    wall_clock: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = token_bytes
    _latest_canary: Canary | None = field(default=None, init=False)
    """The canary that was made last, for the check with the wrong AAD where none is kept."""
    _denied_versions: set[str] = field(default_factory=set, init=False)
    """Versions that the external key manager denied when their canaries could last be tried."""

    async def inspect(self) -> KeyInspection:
        """One inspection. Raises nothing but cancellation: what cannot be read is None, with a problem that says why.

        A read that fails counts as one call, however far it came.
        """
        problems: list[str] = []
        call_problems: list[str] = []  # of calls that a round trip makes, too
        failure, description = await self._try_read(
            "the key cannot be read", lambda: self.key.describe_key(timeout=self.timeout), problems
        )
        permissions = self.key.profile.probe_permissions
        granted: frozenset[str] | None = None
        # On a key that does not exist nothing is granted, whatever the account may do.
        checks_permissions = bool(permissions) and not (failure and failure.reason is Reason.KEY_NOT_FOUND)
        if checks_permissions:
            _, granted = await self._try_read(
                "its permissions cannot be read",
                lambda: self.key.check_permissions(permissions, timeout=self.timeout),
                problems,
            )
        store, key_manager_cause = description.key_store if description else None, Cause.NONE
        checked, known = None, None if granted is None else {one: one in granted for one in permissions}
        if store:
            checked, key_manager_cause, may_check = await self._check_key_store(store, problems)
            known = {**(known or {}), **may_check}
        problems += [description.problem] if description and description.problem else []
        if description and description.versions and (newest_version := description.versions[-1]).failure:
            state = f"version {newest_version.label} is {newest_version.state_label}"
            problems.append(f"{state}: {newest_version.failure}")
        stored = await self._sync_canaries(problems)
        primary = description.primary_version if description else None
        present = next((one for one in (*stored, self._latest_canary) if one and one.version == primary), None)
        encrypt = None
        if present is None:
            encrypt, present = await self._create_canary(call_problems)
            self._latest_canary = present
        await self._update_stored_canaries(stored, present, self._find_expired_versions(description), problems)
        newest = primary or next((one.version for one in (present, *reversed(stored)) if one), None)
        return KeyInspection(
            self.service,
            self.target,
            canaries=await self._decrypt_canaries(
                [one for one in stored if one.version != newest], denied=key_manager_cause is Cause.EKM_DENIED
            ),
            wrong_aad_check=await self._check_wrong_aad(present, call_problems) if present else None,
            inspected_at=self.wall_clock(),
            description=description,
            permissions=known,
            call_counts=_count_reads(
                description, store, permission_calls=self.key.profile.permission_calls if checks_permissions else 0
            ),
            problems=tuple(dict.fromkeys([*problems, *call_problems])),
            call_problems=tuple(call_problems),
            is_service_unavailable=failure is not None and failure.reason is Reason.UNAVAILABLE,
            encrypt_call=encrypt,
            versions_without_canary=self._find_versions_without_canary(
                [one.version for one in (*stored, present) if one], description
            ),
            account=self.key.account,
            key_store=checked,
            key_manager_cause=key_manager_cause,
            credentials=await asyncio.to_thread(self.read_credentials),
        )

    async def _check_key_store(
        self, store: KeyStore, problems: list[str]
    ) -> tuple[KeyStore | None, Cause, Mapping[str, bool]]:
        """What was found, why KMS cannot use the key manager, and whether the account may check that, if it is known.

        A permission that is missing is no problem of the key.
        """
        _, failure, checked = await self._time_call(lambda: self.key.check_key_store(store, timeout=self.timeout))
        if failure is None:
            problems += [checked.problem] if checked and checked.problem else []
            return checked, Cause.NONE, {store.permission: True}
        if failure.values.get("permission") == store.permission:
            return None, Cause.NONE, {store.permission: False}
        problems.append(_format_problem(f"the check of {store.name} failed", failure))
        is_refused = failure.cause.scope is Scope.KEY_MANAGER
        return store, failure.cause if is_refused else Cause.NONE, {store.permission: True} if is_refused else {}

    def _find_versions_without_canary(
        self, versions_with_canary: Collection[str], description: KeyDescription | None
    ) -> tuple[str, ...] | None:
        if description is None or self.sync_canaries is None:
            return None
        version_ids = [one.id for one in description.list_older_versions() if one.state.may_have_ciphertexts]
        return tuple(version for version in reversed(version_ids) if version not in versions_with_canary)

    def _find_expired_versions(self, description: KeyDescription | None) -> frozenset[str]:
        """The versions that have been destroyed for so long that their canaries end."""
        oldest = self.wall_clock() - DESTROYED_CANARY_MAX_AGE
        versions = description.versions if description else ()
        return frozenset(one.id for one in versions if one.destroyed_at is not None and one.destroyed_at < oldest)

    async def _create_canary(self, problems: list[str]) -> tuple[Call, Canary | None]:
        plaintext, aad = self.random_bytes(PLAINTEXT_BYTES), self.random_bytes(AAD_BYTES)
        seconds, failure, encrypted = await self._time_call(
            lambda: self.key.encrypt(plaintext, aad, timeout=self.timeout)
        )
        call = Call(Operation.ENCRYPT, seconds, failure)
        if encrypted is None:
            problems.append(_format_problem("no canary could be made", failure))
            return call, None
        # Not the version that was described: a KMS may go on encrypting with the old primary version for a while.
        digest = hashlib.sha256(plaintext).digest()
        return call, Canary(encrypted.version, aad, encrypted.ciphertext, digest, self.wall_clock())

    async def _update_stored_canaries(
        self, stored: Sequence[Canary], current: Canary | None, expired: Collection[str], problems: list[str]
    ) -> None:
        """Keeps what is new, and forgets what is over."""
        versions = [one.version for one in stored]
        forget = [version for version in versions if version in expired]
        add = current if current and current.version not in versions else None
        if forget:
            log.warning("canaries of destroyed versions removed", target=self.target, versions=forget)
        if add or forget:
            await self._sync_canaries(problems, add, forget)

    async def _decrypt_canaries(self, older: Sequence[Canary], *, denied: bool) -> tuple[CanaryResult, ...]:
        """`denied`: whether the external key manager denies the key now."""
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_DECRYPTIONS)

        async def decrypted(canary: Canary) -> CanaryResult:
            async with semaphore:
                seconds, failure, answer = await self._time_call(
                    lambda: self.key.decrypt(canary.ciphertext, canary.aad, timeout=self.timeout)
                )
            if answer and hashlib.sha256(answer.plaintext).digest() != canary.plaintext_sha256:
                failure = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt gave back another plaintext than was encrypted")
            if failure and failure.cause is Cause.EKM_DENIED:
                self._denied_versions.add(canary.version)
            elif failure is None or failure.reason is not Reason.KEY_DISABLED:
                self._denied_versions.discard(canary.version)
            elif denied or canary.version in self._denied_versions:
                failure = replace(failure, cause=Cause.EKM_DISABLED)
            return CanaryResult(canary.version, Call(Operation.CANARY_DECRYPT, seconds, failure))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(decrypted(older_canary)) for older_canary in older]
        return tuple(task.result() for task in tasks)

    async def _check_wrong_aad(self, canary: Canary, problems: list[str]) -> Call | None:
        other_aad = canary.aad + b"\0"
        seconds, failure, answer = await self._time_call(
            lambda: self.key.decrypt(canary.ciphertext, other_aad, timeout=self.timeout)
        )
        if failure and failure.reason is Reason.INVALID_REQUEST:
            return Call(Operation.DECRYPT, seconds)
        # A checksum is verified only if there is a plaintext.
        if answer or (failure and failure.reason is Reason.CRC_MISMATCH):
            accepted = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt accepted another AAD than was encrypted with")
            return Call(Operation.DECRYPT, seconds, accepted)
        problems.append(_format_problem("whether a wrong AAD is refused is not known", failure))
        return None

    async def _sync_canaries(
        self, problems: list[str], add: Canary | None = None, remove: Collection[str] = ()
    ) -> Sequence[Canary]:
        sync = self.sync_canaries
        if sync is None:
            return ()
        _, answer = await self._try_read("the canaries cannot be used", lambda: sync(add, remove), problems)
        canaries, broken = answer or ((), ())
        problems.extend(broken)
        return canaries

    async def _try_read(
        self, problem: str, call: Callable[[], Awaitable[T]], problems: list[str]
    ) -> tuple[Failure | None, T | None]:
        _, failure, answer = await self._time_call(call)
        if failure:
            problems.append(_format_problem(problem, failure))
        return failure, answer

    async def _time_call(self, call: Callable[[], Awaitable[T]]) -> tuple[float, Failure | None, T | None]:
        seconds, failure, answer = await time_call(call, timeout=self.timeout, clock=self.clock)
        if failure and failure.exception:
            log.error("key inspection failed unexpectedly", target=self.target, exc_info=failure.exception)
        return seconds, failure, answer


def _count_reads(
    description: KeyDescription | None, store: KeyStore | None, *, permission_calls: int
) -> Mapping[KeyRead, int]:
    listed = description.call_count - 1 if description else 0
    counts = {KeyRead.GET_KEY: 1, KeyRead.LIST_VERSIONS: listed, KeyRead.TEST_PERMISSIONS: permission_calls}
    if store is None:
        return counts
    return {**counts, KeyRead.VERIFY_CONNECTIVITY if store.kind is KeyStoreKind.EKM else KeyRead.GET_HSM_INSTANCE: 1}


def _format_problem(subject: str, failure: Failure | None) -> str:
    return f"{subject}: {failure.label}: {failure.detail}" if failure else subject
