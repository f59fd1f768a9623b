"""Undoes a rotation by its journal, the latest entry first, one batch in each call.

A wrapped form goes back only where the row still holds the one that the rotation wrote, and only after the old one was
unwrapped: a version that was disabled meanwhile would take the data key with it. No data key is ever removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection

from shared.keyring import journal, store
from shared.keyring.administration import PAGE, Problem, RotationState
from shared.keyring.database import Database
from shared.keyring.journal import Entry, Outcome, Rotation
from shared.keyring.lease import under_lease
from shared.keyring.model import Status
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import rotations
from shared.keyring.together import together
from shared.keyring.wrapping import UnwrapError, Wrapping

_GONE: Final = "it is no longer in the keyring"
_CHANGED: Final = "another hand changed its wrapped form since; it was left as it is"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Of one rotation, under the lease with `token`."""

    database: Database
    wrapping: Wrapping
    rotation: Rotation
    token: str

    async def begin(self) -> Rotation:
        """From now on the rotation goes backwards only."""

        def write(connection: Connection, now: float) -> Rotation:
            if self.rotation.state is not RotationState.RUNNING:
                journal.refuse_while_running(connection)
            columns = {"state": RotationState.RUNNING.value, "rolling_back": True}
            journal.forget_problems(connection, self.rotation)
            journal.update(connection, now, self.rotation, **columns)
            return journal.required(connection, self.rotation.id)

        return await under_lease(self.database, self.token, write)

    async def batch(self) -> None:
        """Undoes the next entries. What is undone is journalled, also where this raises."""
        rotation = self.rotation
        entries = await self.database.read(lambda connection: journal.to_undo(connection, rotation, PAGE))
        await together(entries, self._obstacle, self._undo)
        if len(entries) < PAGE:
            await under_lease(self.database, self.token, self._finish)

    async def _obstacle(self, entry: Entry) -> str | None:
        """Why its former wrapped form must not be put back, whatever the row holds by then."""
        key = await self.database.read(lambda connection: store.find(connection, entry.data_key_id))
        if key is None:
            return _GONE
        try:
            await self.wrapping.unwrap(replace(key, wrapped=entry.old))
        except UnwrapError as error:
            return f"its former wrapped form cannot be unwrapped: {error}; it was left as it is"
        return None

    async def _undo(self, entries: Sequence[tuple[Entry, str | None]]) -> None:
        def write(connection: Connection, now: float) -> None:
            journal.still(connection, self.rotation)
            changed = sum(self._undid(connection, entry, obstacle) for entry, obstacle in entries)
            journal.update(connection, now, self.rotation, done=rotations.c.done - changed)

        if entries:
            await under_lease(self.database, self.token, write)

    def _undid(self, connection: Connection, entry: Entry, obstacle: str | None) -> bool:
        """Whether it changed the row; one that holds the former wrapped form, of a backup say, is as it has to be."""
        key, changed = store.find(connection, entry.data_key_id), False
        try:
            if key is None:
                obstacle = _GONE
            elif key.wrapped == entry.old:
                obstacle = None
            elif key.wrapped != entry.new:
                obstacle = _CHANGED
            elif obstacle is None:
                changed = store.rewrap(connection, entry.data_key_id, entry.new, entry.old)
        except RetiredVersionError as error:
            obstacle = f"its former wrapped form is not put back: {error}"
        if obstacle is not None:
            journal.add_problem(connection, self.rotation, Problem(id=entry.data_key_id, why=obstacle))
        journal.conclude(connection, entry, Outcome.KEPT if obstacle else Outcome.UNDONE)
        return changed

    def _finish(self, connection: Connection, now: float) -> None:
        journal.still(connection, self.rotation)
        if self.rotation.added:
            self._take_back(connection, self.rotation.added, self.rotation.former)
        columns = {"state": RotationState.ROLLED_BACK.value, "done": journal.kept(connection, self.rotation)}
        journal.update(connection, now, self.rotation, **columns)

    def _take_back(self, connection: Connection, added: str, former: str | None) -> None:
        """The new data key is retired, for records may need it; the former one is active again."""
        if store.change_status(connection, added, Status.PENDING, Status.RETIRED):
            return
        if not store.change_status(connection, added, Status.ACTIVE, Status.RETIRED):
            why = "another data key is active since; nothing was changed"
            journal.add_problem(connection, self.rotation, Problem(id=added, why=why))
        elif former and not store.change_status(connection, former, Status.RETIRED, Status.ACTIVE):
            why = "it cannot be active again, for it is no longer in the keyring; no data key is active now"
            journal.add_problem(connection, self.rotation, Problem(id=former, why=why))
