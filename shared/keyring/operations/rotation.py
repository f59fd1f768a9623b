"""Runs a rotation, one batch in each call, so that it may be killed and resumed between any two commits.

What a call may do follows from the journal alone: whoever calls next, from wherever, goes on where the last one was.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    Problem,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
)
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.progress import MAX_PROBLEMS, Rotation
from shared.keyring.key_table import KeyTable
from shared.keyring.operations.new_dek import STEP_COUNT, NewDekRotation
from shared.keyring.operations.retarget import retarget_rotation
from shared.keyring.operations.rewrap import RewrapRotation
from shared.keyring.operations.rollback import Rollback
from shared.keyring.operations.target_version import choose_target_version
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.wrapping import KeyWrapper


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
