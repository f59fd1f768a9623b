"""Rotations, one batch in each call, so that a runner may be killed and resumed between any two commits.

What a call may do follows from the journal alone: the next caller, on any machine, continues where the last one was.

`new-dek` stores a new data key as pending, shows it to every instance of the service, and only then makes it active.
`rewrap-kek` unwraps every data key and wraps it by the target version, in one commit with its journal entry, and only
where the row still holds what was read. What another program changes meanwhile is found in the next pass. A table that
another program writes all the time has one pass: a row that was changed there is tried again at once.
"""

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from shared.keyring import journal, store
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
from shared.keyring.instances import wait_for_all_instances
from shared.keyring.journal import MAX_PROBLEMS, RewrapEntry, Rotation
from shared.keyring.key_table import OpenKeyring
from shared.keyring.model import KEY_BYTES, DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.tables import rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.port import VersionState
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

_NEW_DEK_STEPS: Final = 2
"""To add, and to promote."""
_MAX_ATTEMPTS: Final = 3
"""For one row of a shared table: another program may change it each time."""


class _Rewrapped(NamedTuple):
    wrapped: WrappedKey
    fingerprint: bytes


async def rotate(keyring: OpenKeyring, request: RotateRequest) -> None:
    """Begins a rotation or does its next batch; one that is done stays as it is.

    Raises AdministrationError, KmsError and DatabaseError, as every function here.
    """
    rotation = await keyring.database.read(lambda connection: journal.find_rotation(connection, request.rotation_id))
    if rotation:
        _refuse_mismatch(rotation, request)
        if rotation.state is RotationState.DONE:
            return
    overtaken = rotation is not None and request.target_version not in (None, rotation.target_version)
    version = await _choose_target_version(
        keyring, rotation.target_version if rotation and not overtaken else request.target_version
    )
    if rotation is None and request.type is RotationType.NEW_DEK:
        await _add_data_key(keyring, request, version)
        return
    rotation = rotation or await _begin_rewrap(keyring, request, version)
    if rotation.state is RotationState.FAILED:
        rotation = await _retry_failed(keyring, request, rotation)
    if overtaken and request.type is RotationType.NEW_DEK:
        rotation = await _retarget_new_dek(keyring, request, rotation, version)
    elif overtaken:
        rotation = await _retarget_rewrap(keyring, request, rotation, version)
    if request.type is RotationType.NEW_DEK:
        await promote_data_key(keyring, request, rotation)
    elif rotation.state is RotationState.RUNNING:
        await rewrap_batch(keyring, request, rotation)


def _refuse_mismatch(rotation: Rotation, request: RotateRequest) -> None:
    if rotation.is_rolling_back:
        if rotation.state is RotationState.ROLLED_BACK:
            raise RefusedError(f"rotation {rotation.id} was rolled back", "begin another one")
        raise RefusedError(f"rotation {rotation.id} is being rolled back", "go on with that")
    if rotation.type is not request.type:
        raise RefusedError(f"rotation {rotation.id} is of the type {rotation.type}, not {request.type}")
    if request.target_version not in (None, rotation.target_version) and not request.allows_retarget:
        raise RefusedError(
            f"rotation {rotation.id} is to version {rotation.target_version}, not {request.target_version}",
            "finish it or roll it back, then begin another one",
        )


async def _choose_target_version(keyring: OpenKeyring, requested: str | None) -> str:
    """The version that was `requested`, or the primary one. Refused if it is not usable, or was retired."""
    retired, kek = await keyring.database.read(keyring.keys.list_retired_versions), keyring.wrapping.kek
    described = await keyring.wrapping.kms.describe_key(timeout=keyring.wrapping.timeout)
    target = requested or described.primary_version
    if target is None:
        raise RefusedError(f"{kek} has no primary version", "set one, then try again")
    version = described.find_version(target)
    if version is None:
        raise RefusedError(f"{kek} has no version {target}; its primary version is {described.primary_version}")
    if version.state is not VersionState.USABLE:
        raise RefusedError(
            f"version {target} of {kek} is {version.state_label}", "enable it or set another primary version"
        )
    if target in retired:
        raise RefusedError(f"version {target} of {kek} was retired", "set another primary version")
    return target


def _refuse_other_version(wrapping: KeyWrapper, wrapped: WrappedKey, version: str) -> None:
    if wrapped.kek_version != version:
        raise AdministrationError(
            f"Encrypt uses version {wrapped.kek_version}, not {version}",
            f"a new primary version needs {wrapping.kms.profile.propagation} to take effect: resume, which waits until "
            "Encrypt uses it",
        )


async def dry_run(keyring: OpenKeyring, type_: RotationType, target_version: str | None) -> RotationProgress:
    """What `rotate` would do; its id is `dry-run`."""
    version, total, problems = await _choose_target_version(keyring, target_version), _NEW_DEK_STEPS, list[Problem]()
    if type_ is RotationType.REWRAP_KEK:
        total, after = await keyring.keys.count_outdated(keyring.database, version), ""
        while len(problems) < MAX_PROBLEMS:
            keys = await keyring.keys.list_outdated(keyring.database, version, after, MAX_PAGE_SIZE)
            if not keys:
                break
            after = keys[-1].id
            problems += (
                Problem(id=key.id, error=str(refusal), is_foreign=refusal.is_foreign)
                for key in keys
                if (refusal := keyring.wrapping.explain_refusal(key.wrapped))
            )
    now = datetime.now(UTC)
    return RotationProgress(
        rotation_id="dry-run",
        type=type_,
        state=RotationState.DONE,
        target_version=version,
        caller="",
        started_at=now,
        updated_at=now,
        total=total,
        done=0,
        problems=tuple(problems[:MAX_PROBLEMS]),
    )


async def _retry_failed(keyring: OpenKeyring, request: RotateRequest, rotation: Rotation) -> Rotation:
    left = await keyring.keys.count_outdated(keyring.database, rotation.target_version)

    def reopen(connection: Connection, now: float) -> Rotation:
        total = max(left, journal.check_unchanged(connection, rotation).total)
        journal.refuse_while_running(connection)
        journal.delete_problems(connection, rotation)
        columns: dict[str, int] = {}
        if rotation.type is RotationType.REWRAP_KEK:  # what was done may be due again: a backup was put back, say
            columns = {"total": total, "done": total - left}
        return journal.update_rotation(
            connection, now, rotation, state=RotationState.RUNNING.value, cursor="", **columns
        )

    return await run_under_lease(keyring.database, request.token, reopen)


async def _add_data_key(keyring: OpenKeyring, request: RotateRequest, version: str) -> None:
    """Stores the new data key as pending, in one commit with the beginning of the rotation."""
    secret, data_key_id = os.urandom(KEY_BYTES), uuid.uuid4().hex
    wrapped = await keyring.wrapping.wrap(data_key_id, secret)
    _refuse_other_version(keyring.wrapping, wrapped, version)

    def write(connection: Connection, now: float) -> None:
        journal.begin_rotation(
            connection,
            now,
            request,
            target_version=version,
            total=_NEW_DEK_STEPS,
            done=1,
            new_data_key=data_key_id,
        )
        created_at = datetime.fromtimestamp(now, UTC)
        new = DataKey(data_key_id, DataKeyStatus.PENDING, wrapped, compute_fingerprint(secret), created_at)
        store.insert_data_key(connection, new)

    await run_under_lease(keyring.database, request.token, write)


async def promote_data_key(keyring: OpenKeyring, request: RotateRequest, rotation: Rotation) -> None:
    """Makes the new data key active, once every instance holds it, and retires the one before it."""
    data_key_id = rotation.new_data_key or ""
    new = await keyring.database.read(lambda connection: store.find_data_key(connection, data_key_id))
    problem = None
    if new is None:
        problem = "the new data key is no longer in the keyring; begin another rotation"
    else:
        try:
            await keyring.wrapping.unwrap(new)
        except UnwrapError as error:
            problem = f"the new data key was not made active: {error}"
    if problem is None:
        await keyring.notify_instances()
        await wait_for_all_instances(keyring.database, data_key_id)

    def write(connection: Connection, now: float) -> None:
        journal.check_unchanged(connection, rotation)
        previous = store.find_active_data_key(connection)
        if problem is not None:
            journal.add_problem(connection, rotation, Problem(id=data_key_id, error=problem))
            journal.update_rotation(connection, now, rotation, state=RotationState.FAILED.value)
            return
        if previous:
            store.change_status(connection, previous.id, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED)
        if not store.change_status(connection, data_key_id, DataKeyStatus.PENDING, DataKeyStatus.ACTIVE):
            raise RefusedError(f"data key {data_key_id} is no longer pending", "roll the rotation back")
        columns = {"former_data_key": previous.id if previous else None, "done": _NEW_DEK_STEPS}
        journal.update_rotation(connection, now, rotation, state=RotationState.DONE.value, **columns)

    await run_under_lease(keyring.database, request.token, write)


async def _retarget_new_dek(keyring: OpenKeyring, request: RotateRequest, rotation: Rotation, version: str) -> Rotation:
    """Wraps the new data key by another version before it is made active."""
    data_key_id = rotation.new_data_key or ""
    new = await keyring.database.read(lambda connection: store.find_data_key(connection, data_key_id))
    wrapped = None
    if new is not None:
        with suppress(UnwrapError):  # what is wrong with it is said when it is promoted
            wrapped = await keyring.wrapping.wrap(data_key_id, await keyring.wrapping.unwrap(new))
            _refuse_other_version(keyring.wrapping, wrapped, version)

    def write(connection: Connection, now: float) -> Rotation:
        journal.check_unchanged(connection, rotation)
        if new and wrapped and not store.replace_wrap(connection, data_key_id, new.wrapped, wrapped):
            raise RefusedError(f"data key {data_key_id} was changed by another program meanwhile", "resume once more")
        return _record_retarget(connection, now, rotation, version)

    return await run_under_lease(keyring.database, request.token, write)


async def _retarget_rewrap(keyring: OpenKeyring, request: RotateRequest, rotation: Rotation, version: str) -> Rotation:
    """What was wrapped so far is wrapped once more."""
    left = await keyring.keys.count_outdated(keyring.database, version)

    def write(connection: Connection, now: float) -> Rotation:
        total = max(left, journal.check_unchanged(connection, rotation).total)
        return _record_retarget(connection, now, rotation, version, total=total, done=total - left)

    return await run_under_lease(keyring.database, request.token, write)


def _record_retarget(connection: Connection, now: float, rotation: Rotation, version: str, **columns: Any) -> Rotation:
    """The rotation continues with another version, from its beginning; what failed is tried again."""
    journal.delete_problems(connection, rotation)
    entry = JournalEntry(
        step=JournalStep.RETARGET,
        outcome=StepOutcome.SUCCEEDED,
        rotation_type=rotation.type,
        detail=f"from version {rotation.target_version} to version {version}",
    )
    journal.add_journal_entry(connection, now, rotation.id, entry)
    return journal.update_rotation(connection, now, rotation, target_version=version, cursor="", **columns)


async def _begin_rewrap(keyring: OpenKeyring, request: RotateRequest, version: str) -> Rotation:
    total = await keyring.keys.count_outdated(keyring.database, version)

    def begin(connection: Connection, now: float) -> Rotation:
        return journal.begin_rotation(connection, now, request, target_version=version, total=total)

    return await run_under_lease(keyring.database, request.token, begin)


async def rewrap_batch(keyring: OpenKeyring, request: RotateRequest, rotation: Rotation) -> None:
    """Re-wraps the next data keys. What is done is journalled, also where this raises."""
    limit, version = request.batch_size, rotation.target_version
    page = await keyring.keys.list_outdated(keyring.database, version, rotation.cursor, limit, rotation.number)
    keys: Sequence[DataKey] = page
    for _ in range(_MAX_ATTEMPTS if keyring.keys.is_shared else 1):
        changed: list[DataKey] = []
        await run_concurrently(
            keys,
            partial(_rewrap, keyring, version),
            partial(_store_results, keyring, request, rotation, changed),
            MAX_CONCURRENT_CALLS,
        )
        keys = changed

    def finish(connection: Connection, now: float) -> None:
        journal.check_unchanged(connection, rotation)
        if len(page) == limit:
            journal.update_rotation(connection, now, rotation, cursor=page[-1].id)
        elif keyring.keys.has_outdated(connection, version, rotation.number):
            journal.update_rotation(connection, now, rotation, cursor="")
        else:
            failed = journal.has_problems(connection, rotation)
            state = RotationState.FAILED if failed else RotationState.DONE
            journal.update_rotation(connection, now, rotation, state=state.value)

    await run_under_lease(keyring.database, request.token, finish)


async def _rewrap(keyring: OpenKeyring, version: str, key: DataKey) -> _Rewrapped | Problem:
    try:
        secret = await keyring.wrapping.unwrap(key)
    except UnwrapError as error:
        return Problem(id=key.id, error=str(error), is_foreign=error.is_foreign)
    wrapped = await keyring.wrapping.wrap_with_aad(key.wrapping_aad, secret)
    _refuse_other_version(keyring.wrapping, wrapped, version)
    return _Rewrapped(wrapped, compute_fingerprint(secret))


async def _store_results(
    keyring: OpenKeyring,
    request: RotateRequest,
    rotation: Rotation,
    changed: list[DataKey],
    results: Sequence[tuple[DataKey, _Rewrapped | Problem]],
) -> None:
    """In one commit, for a disk takes as long for one as for many; `changed` gets what another program changed."""

    def write(connection: Connection, now: float) -> list[DataKey]:
        journal.check_unchanged(connection, rotation)
        before = journal.find_replaced_rewraps(connection, rotation, [key.id for key, _ in results])
        target, left, done = (keyring.wrapping.kek, rotation.target_version), [], 0
        chosen = keyring.keys.count_chosen(connection)
        for key, result in results:
            if _store_result(keyring, connection, rotation, key, result, before.get(key.id)):
                done += isinstance(result, _Rewrapped)
            elif (found := keyring.keys.find(connection, key.id)) and found.wrapped.by != target:
                left.append(found)
        if keyring.keys.count_chosen(connection) < chosen:
            raise RefusedError(
                "other rows leave `driver.where` as soon as these are wrapped anew, and would not be rotated",
                "read no column there that a rotation changes",
            )
        journal.update_rotation(connection, now, rotation, done=rotations.c.done + done)
        return left

    if results:
        changed += await run_under_lease(keyring.database, request.token, write)


def _store_result(
    keyring: OpenKeyring,
    connection: Connection,
    rotation: Rotation,
    key: DataKey,
    result: _Rewrapped | Problem,
    previous: RewrapEntry | None,
) -> bool:
    """False, and nothing is stored, where another program changed the row."""
    if isinstance(result, Problem):
        if keyring.keys.find(connection, key.id) != key:
            return False
        journal.add_problem(connection, rotation, result)
        return True
    if not keyring.keys.replace_wrap(connection, replace(key, fingerprint=result.fingerprint), result.wrapped):
        return False
    if previous and previous.new_wrap == key.wrapped:
        journal.replace_rewrap(connection, previous, result.wrapped)
    else:
        journal.add_rewrap(connection, rotation, key.id, key.wrapped, result.wrapped)
    return True
