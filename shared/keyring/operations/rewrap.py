"""`rewrap-kek`: every data key is unwrapped and wrapped again by the target version, one batch in each call.

Of each data key the new wrapped form and its entry in the journal are one commit, made only where the row still holds
what was read. What another program changes meanwhile is found in the next pass; the last one finds nothing to do. A
table that another program writes all the time has one pass, for the next one would find more: there a row that was
changed is tried again at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection

from shared.keyring.administration import Problem, RotateRequest, RotationState
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.progress import RewrapEntry, Rotation
from shared.keyring.key_table import KeyTable
from shared.keyring.model import DataKey, WrappedKey, compute_fingerprint
from shared.keyring.operations import target_version
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.tables import rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

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
        target_version.refuse_other_version(self.wrapping, wrapped, self.rotation.target_version)
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
