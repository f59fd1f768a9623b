"""`rewrap-kek`: every data key is unwrapped and wrapped again by the target version, one batch in each call.

Of each data key the new wrapped form and its entry in the journal are one commit, made only where the row still holds
what was read. What another program changes meanwhile is found in the next pass; the last one finds nothing to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, exists, func, select

from shared.keyring import store
from shared.keyring.administration import Problem, RotateRequest, RotationState
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.progress import RewrapEntry, Rotation
from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey
from shared.keyring.operations import target_version
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.tables import data_keys, problems, rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.process.concurrency import run_concurrently


def build_outdated_condition(kek: str, version: str) -> ColumnElement[bool]:
    """The data keys that are not wrapped by this version."""
    return ~((data_keys.c.kek == kek) & (data_keys.c.kek_version == version))


def count_outdated(connection: Connection, kek: str, version: str) -> int:
    """How many of them there are; those of foreign keys are not ours to wrap."""
    condition = data_keys.c.kek.in_((kek, LOCAL_KEK))
    return connection.execute(
        select(func.count()).where(build_outdated_condition(kek, version), condition)
    ).scalar_one()


@dataclass(frozen=True, slots=True)
class RewrapRotation:
    """One running rotation of this type."""

    database: Database
    wrapping: KeyWrapper
    request: RotateRequest
    rotation: Rotation

    async def run_batch(self) -> None:
        """Does the next data keys. What is done is journalled, also where this raises."""
        limit = self.request.batch_size
        keys = await self.database.read(lambda connection: self._read_page(connection, self.rotation.cursor, limit))
        await run_concurrently(keys, self._rewrap, self._store_results)
        if len(keys) < limit:
            await run_under_lease(self.database, self.request.token, self._finish_pass)

    def _read_page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        condition = (problems.c.rotation == self.rotation.number) & (problems.c.data_key_id == data_keys.c.id)
        left = build_outdated_condition(self.wrapping.kek, self.rotation.target_version) & ~exists().where(condition)
        return store.list_data_keys(connection, after, limit, left)

    def _finish_pass(self, connection: Connection, now: float) -> None:
        progress.check_unchanged(connection, self.rotation)
        if self._read_page(connection, "", 1):
            progress.update_rotation(connection, now, self.rotation, cursor="")
        else:
            failed = progress.has_problems(connection, self.rotation)
            state = RotationState.FAILED if failed else RotationState.DONE
            progress.update_rotation(connection, now, self.rotation, state=state.value)

    async def _rewrap(self, key: DataKey) -> WrappedKey | Problem:
        try:
            wrapped = await self.wrapping.wrap(key.id, await self.wrapping.unwrap(key))
        except UnwrapError as error:
            return Problem(id=key.id, error=str(error), is_foreign=error.is_foreign)
        target_version.refuse_other_version(wrapped, self.rotation.target_version)
        return wrapped

    async def _store_results(self, results: Sequence[tuple[DataKey, WrappedKey | Problem]]) -> None:
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
        self, connection: Connection, key: DataKey, result: WrappedKey | Problem, previous: RewrapEntry | None
    ) -> bool:
        if isinstance(result, Problem):
            if store.find_data_key(connection, key.id) == key:
                progress.add_problem(connection, self.rotation, result)
            return False
        if not store.replace_wrap(connection, key.id, key.wrapped, result):
            return False  # another program changed it: the next pass finds it
        if previous and previous.new_wrap == key.wrapped:
            progress.replace_rewrap(connection, previous, result)
        else:
            progress.add_rewrap(connection, self.rotation, key.id, key.wrapped, result)
        return True
