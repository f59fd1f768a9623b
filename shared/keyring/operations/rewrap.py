"""`rewrap-kek`: every data key is unwrapped and wrapped again by the target version, one batch in each call.

Of each data key the new wrapped form and its entry in the journal are one commit, made only where the row still holds
what was read. What another program changes meanwhile is found in the next pass; the last one finds nothing to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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
        limit = self.request.batch_size
        keys = await self._read_page(self.rotation.cursor, limit)
        await run_concurrently(keys, self._rewrap, self._store_results, MAX_CONCURRENT_CALLS)
        if len(keys) < limit:
            await self._finish_pass()

    async def _read_page(self, after: str, limit: int) -> tuple[DataKey, ...]:
        version, number = self.rotation.target_version, self.rotation.number
        return await self.keys.list_outdated(self.database, version, after, limit, number)

    async def _finish_pass(self) -> None:
        is_left = bool(await self._read_page("", 1))
        await run_under_lease(
            self.database, self.request.token, lambda connection, now: self._store_end(connection, now, is_left=is_left)
        )

    def _store_end(self, connection: Connection, now: float, *, is_left: bool) -> None:
        progress.check_unchanged(connection, self.rotation)
        if is_left or self.keys.has_outdated(connection, self.rotation.target_version, self.rotation.number):
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

    async def _store_results(self, results: Sequence[tuple[DataKey, "_Rewrapped | Problem"]]) -> None:
        """In one commit, for a disk takes as long for one as for many."""

        def write(connection: Connection, now: float) -> None:
            progress.check_unchanged(connection, self.rotation)
            before = progress.find_replaced_rewraps(connection, self.rotation, [key.id for key, _ in results])
            done = sum(self._store_result(connection, key, outcome, before.get(key.id)) for key, outcome in results)
            progress.update_rotation(
                connection, now, self.rotation, cursor=results[-1][0].id, done=rotations.c.done + done
            )

        if results:
            await run_under_lease(self.database, self.request.token, write)

    def _store_result(
        self, connection: Connection, key: DataKey, result: "_Rewrapped | Problem", previous: RewrapEntry | None
    ) -> bool:
        if isinstance(result, Problem):
            if self.keys.find(connection, key.id) == key:
                progress.add_problem(connection, self.rotation, result)
            return False
        if not self.keys.replace_wrap(connection, replace(key, fingerprint=result.fingerprint), result.wrapped):
            return False  # another program changed it: the next pass finds it
        if previous and previous.new_wrap == key.wrapped:
            progress.replace_rewrap(connection, previous, result.wrapped)
        else:
            progress.add_rewrap(connection, self.rotation, key.id, key.wrapped, result.wrapped)
        return True


class _Rewrapped(NamedTuple):
    wrapped: WrappedKey
    fingerprint: bytes
