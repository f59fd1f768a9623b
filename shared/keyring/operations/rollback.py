"""Undoes a rotation by its journal, the latest entry first, one batch in each call.

A wrapped form goes back only where the row still holds the one that the rotation wrote, and only after the old one was
unwrapped: a version that was disabled meanwhile would take the data key with it. No data key is ever removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection

from shared.keyring import store
from shared.keyring.administration import MAX_PAGE_SIZE, Problem, RotationState
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.progress import RewrapEntry, RewrapOutcome, Rotation
from shared.keyring.key_table import KeyTable
from shared.keyring.model import DataKeyStatus
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

_NOT_IN_KEYRING: Final = "it is no longer in the keyring"
_CHANGED_SINCE: Final = "another program changed its wrapped form since; it was left as it is"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Of one rotation, under the lease with `token`."""

    database: Database
    keys: KeyTable
    wrapping: KeyWrapper
    rotation: Rotation
    token: str

    async def begin(self) -> Rotation:
        """From now on the rotation goes backwards only."""

        def write(connection: Connection, now: float) -> Rotation:
            if self.rotation.state is not RotationState.RUNNING:
                progress.refuse_while_running(connection)
            columns = {"state": RotationState.RUNNING.value, "is_rolling_back": True}
            progress.delete_problems(connection, self.rotation)
            progress.update_rotation(connection, now, self.rotation, **columns)
            return progress.get_rotation(connection, self.rotation.id)

        return await run_under_lease(self.database, self.token, write)

    async def run_batch(self) -> None:
        """Undoes the next entries. What is undone is journalled, also where this raises."""
        rotation = self.rotation
        entries = await self.database.read(
            lambda connection: progress.list_rewraps_to_roll_back(connection, rotation, MAX_PAGE_SIZE)
        )
        await run_concurrently(entries, self._find_obstacle, self._roll_back_entries, MAX_CONCURRENT_CALLS)
        if len(entries) < MAX_PAGE_SIZE:
            await run_under_lease(self.database, self.token, self._finish)

    async def _find_obstacle(self, entry: RewrapEntry) -> str | None:
        """Why its former wrapped form must not be put back, whatever the row holds by then."""
        key = await self.database.read(lambda connection: self.keys.find(connection, entry.data_key_id))
        if key is None:
            return _NOT_IN_KEYRING
        try:
            await self.wrapping.unwrap(replace(key, wrapped=entry.old_wrap))
        except UnwrapError as error:
            return f"its former wrapped form cannot be unwrapped: {error}; it was left as it is"
        return None

    async def _roll_back_entries(self, entries: Sequence[tuple[RewrapEntry, str | None]]) -> None:
        def write(connection: Connection, now: float) -> None:
            progress.check_unchanged(connection, self.rotation)
            changed = sum(self._roll_back_entry(connection, entry, obstacle) for entry, obstacle in entries)
            progress.update_rotation(connection, now, self.rotation, done=rotations.c.done - changed)

        if entries:
            await run_under_lease(self.database, self.token, write)

    def _roll_back_entry(self, connection: Connection, entry: RewrapEntry, obstacle: str | None) -> bool:
        """Whether it changed the row; one that holds the former wrapped form, of a backup say, is as it has to be."""
        key, changed = self.keys.find(connection, entry.data_key_id), False
        try:
            if key is None:
                obstacle = None if self.keys.is_shared else _NOT_IN_KEYRING
            elif key.wrapped == entry.old_wrap:
                obstacle = None
            elif key.wrapped != entry.new_wrap:
                obstacle = None if self.keys.is_shared else _CHANGED_SINCE
            elif obstacle is None:
                changed = self.keys.replace_wrap(connection, key, entry.old_wrap)
        except RetiredVersionError as error:
            obstacle = f"its former wrapped form is not put back: {error}"
        if obstacle is not None:
            progress.add_problem(connection, self.rotation, Problem(id=entry.data_key_id, error=obstacle))
        progress.set_rewrap_outcome(
            connection, entry, RewrapOutcome.NOT_ROLLED_BACK if obstacle else RewrapOutcome.ROLLED_BACK
        )
        return changed

    def _finish(self, connection: Connection, now: float) -> None:
        progress.check_unchanged(connection, self.rotation)
        if self.rotation.new_data_key:
            self._restore_active_key(connection, self.rotation.new_data_key, self.rotation.former_data_key)
        columns = {
            "state": RotationState.ROLLED_BACK.value,
            "done": progress.count_not_rolled_back(connection, self.rotation),
        }
        progress.update_rotation(connection, now, self.rotation, **columns)

    def _restore_active_key(self, connection: Connection, added: str, previous: str | None) -> None:
        """The new data key is retired, for records may need it; the former one is active again."""
        if store.change_status(connection, added, DataKeyStatus.PENDING, DataKeyStatus.RETIRED):
            return
        if not store.change_status(connection, added, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED):
            cause = "another data key is active since; nothing was changed"
            progress.add_problem(connection, self.rotation, Problem(id=added, error=cause))
        elif previous and not store.change_status(connection, previous, DataKeyStatus.RETIRED, DataKeyStatus.ACTIVE):
            cause = "it cannot be active again, for it is no longer in the keyring; no data key is active now"
            progress.add_problem(connection, self.rotation, Problem(id=previous, error=cause))
