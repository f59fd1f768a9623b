"""`rewrap-kek`: every data key is unwrapped and wrapped again by the target version, one batch in each call.

Of each data key the new wrapped form and its entry in the journal are one commit, made only where the row still holds
what was read. What another hand changes meanwhile is found in the next pass; the last one finds nothing to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, exists, func, select

from shared.keyring import journal, store, target
from shared.keyring.administration import Problem, RotateRequest, RotationState
from shared.keyring.database import Database
from shared.keyring.journal import Entry, Rotation
from shared.keyring.lease import under_lease
from shared.keyring.model import LOCAL_KEK, DataKey, Wrapped
from shared.keyring.tables import data_keys, problems, rotations
from shared.keyring.together import together
from shared.keyring.wrapping import UnwrapError, Wrapping


def needed(kek: str, version: int) -> ColumnElement[bool]:
    """The data keys that are not wrapped by this version."""
    return ~((data_keys.c.kek == kek) & (data_keys.c.kek_version == version))


def count(connection: Connection, kek: str, version: int) -> int:
    """How many of them there are; those of foreign keys are not ours to wrap."""
    ours = data_keys.c.kek.in_((kek, LOCAL_KEK))
    return connection.execute(select(func.count()).where(needed(kek, version), ours)).scalar_one()


@dataclass(frozen=True, slots=True)
class Rewrap:
    """One rotation of this type, under way."""

    database: Database
    wrapping: Wrapping
    request: RotateRequest
    rotation: Rotation

    async def batch(self) -> None:
        """Does the next data keys. What is done is journalled, also where this raises."""
        limit = self.request.batch
        keys = await self.database.read(lambda connection: self._page(connection, self.rotation.cursor, limit))
        await together(keys, self._wrapped, self._write)
        if len(keys) < limit:
            await under_lease(self.database, self.request.token, self._end_of_pass)

    def _page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        same = (problems.c.rotation == self.rotation.number) & (problems.c.data_key_id == data_keys.c.id)
        left = needed(self.wrapping.kek, self.rotation.target_version) & ~exists().where(same)
        return store.page(connection, after, limit, left)

    def _end_of_pass(self, connection: Connection, now: float) -> None:
        journal.still(connection, self.rotation)
        if self._page(connection, "", 1):
            journal.update(connection, now, self.rotation, cursor="")
        else:
            failed = journal.has_failed(connection, self.rotation)
            state = RotationState.FAILED if failed else RotationState.DONE
            journal.update(connection, now, self.rotation, state=state.value)

    async def _wrapped(self, key: DataKey) -> Wrapped | Problem:
        try:
            wrapped = await self.wrapping.wrap(key.id, await self.wrapping.unwrap(key))
        except UnwrapError as error:
            return Problem(id=key.id, why=str(error), foreign=error.foreign)
        target.refuse_another(wrapped, self.rotation.target_version)
        return wrapped

    async def _write(self, outcomes: Sequence[tuple[DataKey, Wrapped | Problem]]) -> None:
        """In one commit, for a disk takes as long for one as for many."""

        def write(connection: Connection, now: float) -> None:
            journal.still(connection, self.rotation)
            before = journal.superseded(connection, self.rotation, [key.id for key, _ in outcomes])
            done = sum(self._took(connection, key, outcome, before.get(key.id)) for key, outcome in outcomes)
            journal.update(connection, now, self.rotation, cursor=outcomes[-1][0].id, done=rotations.c.done + done)

        if outcomes:
            await under_lease(self.database, self.request.token, write)

    def _took(self, connection: Connection, key: DataKey, outcome: Wrapped | Problem, before: Entry | None) -> bool:
        if isinstance(outcome, Problem):
            if store.find(connection, key.id) == key:
                journal.add_problem(connection, self.rotation, outcome)
            return False
        if not store.rewrap(connection, key.id, key.wrapped, outcome):
            return False  # another hand changed it: the next pass finds it
        if before and before.new == key.wrapped:
            journal.replace(connection, before, outcome)
        else:
            journal.enter(connection, self.rotation, key.id, key.wrapped, outcome)
        return True
