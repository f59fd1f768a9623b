"""`new-dek`: a new data key is stored as pending, shown to every instance of the service, and only then made active.

Two steps, each one commit; between them nothing is encrypted with it. An instance that starts in between reads the
keyring again when it meets its first record.

A rotation goes on with another version of the KMS key: the primary one changed before it was finished.

What it wrapped so far is wrapped once more, and the journal gets an entry of the step `retarget`.

`rewrap-kek`: every data key is unwrapped and wrapped again by the target version, one batch in each call.

Of each data key the new wrapped form and its entry in the journal are one commit, made only where the row still holds
what was read. What another program changes meanwhile is found in the next pass; the last one finds nothing to do. A
table that another program writes all the time has one pass, for the next one would find more: there a row that was
changed is tried again at once.

Runs a rotation, one batch in each call, so that it may be killed and resumed between any two commits.

What a call may do follows from the journal alone: whoever calls next, from wherever, goes on where the last one was.

Which version of the KMS key a rotation wraps by; refused if that could not be unwrapped tomorrow.
"""

import os
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from shared.keyring import journal as progress
from shared.keyring import store
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    JournalEntry,
    JournalStep,
    Problem,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
)
from shared.keyring.database import Database
from shared.keyring.instance_readiness import wait_for_all_instances
from shared.keyring.journal import MAX_PROBLEMS, RewrapEntry, Rotation, add_journal_entry
from shared.keyring.key_table import KeyTable
from shared.keyring.model import KEY_BYTES, DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.recovery import Rollback
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.tables import rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.port import VersionState
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently


async def choose_target_version(wrapping: KeyWrapper, requested: str | None, retired: Collection[str]) -> str:
    """The version that was `requested`, or else the primary one; it is usable.

    Raises:
        RefusedError: it is not, or was retired.
        KmsError: the key cannot be read.
    """
    described = await wrapping.kms.describe_key(timeout=wrapping.timeout)
    target = requested or described.primary_version
    if target is None:
        raise RefusedError(f"{wrapping.kek} has no primary version", "set one, then try again")
    version = described.find_version(target)
    if version is None:
        raise RefusedError(
            f"{wrapping.kek} has no version {target}; its primary version is {described.primary_version}"
        )
    if version.state is not VersionState.USABLE:
        raise RefusedError(
            f"version {target} of {wrapping.kek} is {version.state_label}", "enable it or set another primary version"
        )
    if target in retired:
        raise RefusedError(f"version {target} of {wrapping.kek} was retired", "set another primary version")
    return target


def refuse_other_version(wrapping: KeyWrapper, wrapped: WrappedKey, version: str) -> None:
    """Raises AdministrationError if a wrap is not by the target version."""
    if wrapped.kek_version != version:
        raise AdministrationError(
            f"Encrypt uses version {wrapped.kek_version}, not {version}",
            f"a new primary version needs {wrapping.kms.profile.propagation} to take effect: resume, which waits until "
            "Encrypt uses it",
        )


STEP_COUNT: Final = 2
"""To add, and to promote."""


@dataclass(frozen=True, slots=True)
class NewDekRotation:
    """One rotation of this type."""

    database: Database
    wrapping: KeyWrapper
    request: RotateRequest
    random_bytes: Callable[[int], bytes]

    async def add_data_key(self, version: str) -> None:
        """Stores the new data key as pending, in one commit with the beginning of the rotation."""
        secret = self.random_bytes(KEY_BYTES)
        data_key_id = uuid.UUID(bytes=self.random_bytes(16), version=4).hex
        wrapped = await self.wrapping.wrap(data_key_id, secret)
        refuse_other_version(self.wrapping, wrapped, version)

        def write(connection: Connection, now: float) -> None:
            created_at = datetime.fromtimestamp(now, UTC)
            progress.begin_rotation(
                connection,
                now,
                self.request,
                target_version=version,
                total=STEP_COUNT,
                done=1,
                new_data_key=data_key_id,
            )
            new = DataKey(data_key_id, DataKeyStatus.PENDING, wrapped, compute_fingerprint(secret), created_at)
            store.insert_data_key(connection, new)

        await run_under_lease(self.database, self.request.token, write)

    async def promote_data_key(self, rotation: Rotation, notify_instances: Callable[[], Awaitable[None]]) -> None:
        """Makes it active, once every instance holds it, and retires the one that was."""
        data_key_id = rotation.new_data_key or ""
        new = await self.database.read(lambda connection: store.find_data_key(connection, data_key_id))
        problem = None
        if new is None:
            problem = "the new data key is no longer in the keyring; begin another rotation"
        else:
            try:
                await self.wrapping.unwrap(new)
            except UnwrapError as error:
                problem = f"the new data key was not made active: {error}"
        if problem is None:
            await notify_instances()
            await wait_for_all_instances(self.database, data_key_id)

        def write(connection: Connection, now: float) -> None:
            progress.check_unchanged(connection, rotation)
            previous = store.find_active_data_key(connection)
            if problem is not None:
                progress.add_problem(connection, rotation, Problem(id=data_key_id, error=problem))
                progress.update_rotation(connection, now, rotation, state=RotationState.FAILED.value)
                return
            if previous:
                store.change_status(connection, previous.id, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED)
            if not store.change_status(connection, data_key_id, DataKeyStatus.PENDING, DataKeyStatus.ACTIVE):
                raise RefusedError(f"data key {data_key_id} is no longer pending", "roll the rotation back")
            columns = {"former_data_key": previous.id if previous else None, "done": STEP_COUNT}
            progress.update_rotation(connection, now, rotation, state=RotationState.DONE.value, **columns)

        await run_under_lease(self.database, self.request.token, write)


async def retarget_rotation(
    database: Database,
    keys: KeyTable,
    wrapping: KeyWrapper,
    request: RotateRequest,
    rotation: Rotation,
    version: str,
) -> Rotation:
    """The rotation, which from now on is to `version`. Raises AdministrationError, KmsError and DatabaseError."""
    if rotation.type is RotationType.NEW_DEK:
        return await _retarget_new_dek(database, wrapping, request, rotation, version)
    return await _retarget_rewrap(database, keys, request, rotation, version)


async def _retarget_rewrap(
    database: Database, keys: KeyTable, request: RotateRequest, rotation: Rotation, version: str
) -> Rotation:
    left = await keys.count_outdated(database, version)

    def write(connection: Connection, now: float) -> Rotation:
        progress.check_unchanged(connection, rotation)
        total = max(left, progress.read_total(connection, rotation))
        return _record_retarget(connection, now, rotation, version, total=total, done=total - left)

    return await run_under_lease(database, request.token, write)


async def _retarget_new_dek(
    database: Database, wrapping: KeyWrapper, request: RotateRequest, rotation: Rotation, version: str
) -> Rotation:
    """Wraps the new data key by another version before it is made active."""
    data_key_id = rotation.new_data_key or ""
    new = await database.read(lambda connection: store.find_data_key(connection, data_key_id))
    wrapped = None
    if new is not None:
        with suppress(UnwrapError):  # what is wrong with it is said when it is promoted
            wrapped = await wrapping.wrap(data_key_id, await wrapping.unwrap(new))
            refuse_other_version(wrapping, wrapped, version)

    def write(connection: Connection, now: float) -> Rotation:
        progress.check_unchanged(connection, rotation)
        if new and wrapped and not store.replace_wrap(connection, data_key_id, new.wrapped, wrapped):
            raise RefusedError(f"data key {data_key_id} was changed by another program meanwhile", "resume once more")
        return _record_retarget(connection, now, rotation, version)

    return await run_under_lease(database, request.token, write)


def _record_retarget(connection: Connection, now: float, rotation: Rotation, version: str, **columns: Any) -> Rotation:
    """Stores that the rotation continues with another version, from its beginning; what failed is tried again."""
    progress.delete_problems(connection, rotation)
    entry = JournalEntry(
        step=JournalStep.RETARGET,
        outcome=StepOutcome.SUCCEEDED,
        rotation_type=rotation.type,
        detail=f"from version {rotation.target_version} to version {version}",
    )
    add_journal_entry(connection, now, rotation.id, entry)
    progress.update_rotation(connection, now, rotation, target_version=version, cursor="", **columns)
    return progress.get_rotation(connection, rotation.id)


_MAX_ATTEMPTS: Final = 3
"""For one row of a shared table: another program may change it each time."""


@dataclass(frozen=True, slots=True)
class RewrapRotation:
    """One running rotation of this type."""

    database: Database
    keys: KeyTable
    wrapping: KeyWrapper
    request: RotateRequest
    rotation: Rotation

    async def run_batch(self) -> None:
        """Does the next data keys. What is done is journalled, also where this raises."""
        limit, rotation = self.request.batch_size, self.rotation
        page = await self.keys.list_outdated(
            self.database, rotation.target_version, rotation.cursor, limit, rotation.number
        )
        keys: Sequence[DataKey] = page
        for _ in range(_MAX_ATTEMPTS if self.keys.is_shared else 1):
            changed: list[DataKey] = []
            await run_concurrently(keys, self._rewrap, partial(self._store_results, changed), MAX_CONCURRENT_CALLS)
            keys = changed
        last = page[-1].id if len(page) == limit else None
        await run_under_lease(self.database, self.request.token, partial(self._finish_page, last))

    def _finish_page(self, last: str | None, connection: Connection, now: float) -> None:
        """Goes on after the data key `last`, or where there is none ends the pass."""
        progress.check_unchanged(connection, self.rotation)
        if last is not None:
            progress.update_rotation(connection, now, self.rotation, cursor=last)
        elif self.keys.has_outdated(connection, self.rotation.target_version, self.rotation.number):
            progress.update_rotation(connection, now, self.rotation, cursor="")
        else:
            failed = progress.has_problems(connection, self.rotation)
            state = RotationState.FAILED if failed else RotationState.DONE
            progress.update_rotation(connection, now, self.rotation, state=state.value)

    async def _rewrap(self, key: DataKey) -> "_Rewrapped | Problem":
        try:
            secret = await self.wrapping.unwrap(key)
        except UnwrapError as error:
            return Problem(id=key.id, error=str(error), is_foreign=error.is_foreign)
        wrapped = await self.wrapping.wrap_with_aad(key.wrapping_aad, secret)
        refuse_other_version(self.wrapping, wrapped, self.rotation.target_version)
        return _Rewrapped(wrapped, compute_fingerprint(secret))

    async def _store_results(
        self, changed: list[DataKey], results: Sequence[tuple[DataKey, "_Rewrapped | Problem"]]
    ) -> None:
        """In one commit, for a disk takes as long for one as for many; `changed` gets what another program changed."""

        def write(connection: Connection, now: float) -> list[DataKey]:
            progress.check_unchanged(connection, self.rotation)
            before = progress.find_replaced_rewraps(connection, self.rotation, [key.id for key, _ in results])
            left, done = [], 0
            for key, result in results:
                if self._store_result(connection, key, result, before.get(key.id)):
                    done += isinstance(result, _Rewrapped)
                elif (found := self.keys.find(connection, key.id)) and self._is_outdated(found):
                    left.append(found)
            progress.update_rotation(connection, now, self.rotation, done=rotations.c.done + done)
            return left

        if results:
            changed += await run_under_lease(self.database, self.request.token, write)

    def _store_result(
        self, connection: Connection, key: DataKey, result: "_Rewrapped | Problem", previous: RewrapEntry | None
    ) -> bool:
        """False, and nothing is stored, where another program changed the row."""
        if isinstance(result, Problem):
            if self.keys.find(connection, key.id) != key:
                return False
            progress.add_problem(connection, self.rotation, result)
            return True
        if not self.keys.replace_wrap(connection, replace(key, fingerprint=result.fingerprint), result.wrapped):
            return False
        if previous and previous.new_wrap == key.wrapped:
            progress.replace_rewrap(connection, previous, result.wrapped)
        else:
            progress.add_rewrap(connection, self.rotation, key.id, key.wrapped, result.wrapped)
        return True

    def _is_outdated(self, key: DataKey) -> bool:
        return (key.wrapped.kek, key.wrapped.kek_version) != (self.wrapping.kek, self.rotation.target_version)


class _Rewrapped(NamedTuple):
    wrapped: WrappedKey
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class RotationRunner:
    """The rotations of one keyring. Every method raises AdministrationError, KmsError and DatabaseError."""

    database: Database
    keys: KeyTable
    wrapping: KeyWrapper
    notify_instances: Callable[[], Awaitable[None]]
    """Has every instance of the service read the keyring again."""
    random_bytes: Callable[[int], bytes] = os.urandom

    async def rotate(self, request: RotateRequest) -> None:
        """Begins a rotation or does its next batch; one that is done stays as it is."""
        rotation = await self._find_rotation(request.rotation_id)
        if rotation:
            _refuse_mismatch(rotation, request)
            if rotation.state is RotationState.DONE:
                return
        overtaken = rotation is not None and request.target_version not in (None, rotation.target_version)
        version = await self._choose_target_version(
            rotation.target_version if rotation and not overtaken else request.target_version
        )
        new_dek = NewDekRotation(self.database, self.wrapping, request, self.random_bytes)
        if rotation is None:
            if request.type is RotationType.NEW_DEK:
                await new_dek.add_data_key(version)
                return
            rotation = await self._begin_rewrap(request, version)
        if rotation.state is RotationState.FAILED:
            rotation = await self._retry_failed(request, rotation)
        if overtaken:
            rotation = await retarget_rotation(self.database, self.keys, self.wrapping, request, rotation, version)
        if request.type is RotationType.NEW_DEK:
            await new_dek.promote_data_key(rotation, self.notify_instances)
        elif rotation.state is RotationState.RUNNING:
            await RewrapRotation(self.database, self.keys, self.wrapping, request, rotation).run_batch()

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        """What `rotate` would do; its id is `dry-run`."""
        version = await self._choose_target_version(target_version)
        request = RotateRequest(rotation_id="dry-run", type=type_, token="", caller="", target_version=version)
        if type_ is RotationType.NEW_DEK:
            return _build_dry_run_progress(request, version, STEP_COUNT)
        total = await self.keys.count_outdated(self.database, version)
        return _build_dry_run_progress(request, version, total).model_copy(
            update={"problems": await self._find_skipped_data_keys(version)}
        )

    async def rollback(self, rotation_id: str, token: str) -> None:
        """Undoes a rotation's next entries; one that is rolled back stays as it is."""
        rotation = await self.database.read(lambda connection: progress.get_rotation(connection, rotation_id))
        if rotation.state is RotationState.ROLLED_BACK:
            return
        if not rotation.is_rolling_back:
            rotation = await Rollback(self.database, self.keys, self.wrapping, rotation, token).begin()
        await Rollback(self.database, self.keys, self.wrapping, rotation, token).run_batch()

    async def _find_rotation(self, rotation_id: str) -> Rotation | None:
        return await self.database.read(lambda connection: progress.find_rotation(connection, rotation_id))

    async def _choose_target_version(self, requested: str | None) -> str:
        retired = await self.database.read(self.keys.list_retired_versions)
        return await choose_target_version(self.wrapping, requested, retired)

    async def _begin_rewrap(self, request: RotateRequest, version: str) -> Rotation:
        total = await self.keys.count_outdated(self.database, version)

        def begin(connection: Connection, now: float) -> Rotation:
            return progress.begin_rotation(connection, now, request, target_version=version, total=total)

        return await run_under_lease(self.database, request.token, begin)

    async def _retry_failed(self, request: RotateRequest, rotation: Rotation) -> Rotation:
        """A rotation that failed tries once more what it could not do."""
        left = await self.keys.count_outdated(self.database, rotation.target_version)

        def reopen(connection: Connection, now: float) -> Rotation:
            progress.check_unchanged(connection, rotation)
            progress.refuse_while_running(connection)
            progress.delete_problems(connection, rotation)
            columns: dict[str, int] = {}
            if rotation.type is RotationType.REWRAP_KEK:  # what was done may be due again: a backup was put back, say
                total = max(left, progress.read_total(connection, rotation))
                columns = {"total": total, "done": total - left}
            progress.update_rotation(connection, now, rotation, state=RotationState.RUNNING.value, cursor="", **columns)
            return progress.get_rotation(connection, rotation.id)

        return await run_under_lease(self.database, request.token, reopen)

    async def _find_skipped_data_keys(self, version: str) -> tuple[Problem, ...]:
        """The data keys that would not even be tried."""
        left_out: list[Problem] = []
        after = ""
        while len(left_out) < MAX_PROBLEMS:
            keys = await self.keys.list_outdated(self.database, version, after, MAX_PAGE_SIZE)
            if not keys:
                break
            after = keys[-1].id
            refusals = ((key.id, self.wrapping.explain_refusal(key.wrapped)) for key in keys)
            left_out += (
                Problem(id=each, error=str(refusal), is_foreign=refusal.is_foreign)
                for each, refusal in refusals
                if refusal
            )
        return tuple(left_out[:MAX_PROBLEMS])


def _build_dry_run_progress(request: RotateRequest, version: str, total: int) -> RotationProgress:
    now = datetime.now(UTC)
    return RotationProgress(
        rotation_id=request.rotation_id,
        type=request.type,
        state=RotationState.DONE,
        target_version=version,
        caller=request.caller,
        started_at=now,
        updated_at=now,
        total=total,
        done=0,
    )


def _refuse_mismatch(rotation: Rotation, request: RotateRequest) -> None:
    if rotation.is_rolling_back:
        done = rotation.state is RotationState.ROLLED_BACK
        if done:
            raise RefusedError(f"rotation {rotation.id} was rolled back", "begin another one")
        raise RefusedError(f"rotation {rotation.id} is being rolled back", "go on with that")
    if rotation.type is not request.type:
        raise RefusedError(f"rotation {rotation.id} is of the type {rotation.type}, not {request.type}")
    if request.target_version not in (None, rotation.target_version) and not request.allows_retarget:
        raise RefusedError(
            f"rotation {rotation.id} is to version {rotation.target_version}, not {request.target_version}",
            "finish it or roll it back, then begin another one",
        )
