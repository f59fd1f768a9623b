"""`new-dek`: a new data key is stored as pending, shown to every instance of the service, and only then made active.

Two steps, each one commit; between them nothing is encrypted with it. An instance that starts in between reads the
keyring again when it meets its first record.
"""

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection

from shared.keyring import journal, store, target
from shared.keyring.administration import Problem, Progress, RefusedError, RotateRequest, RotationState
from shared.keyring.database import Database
from shared.keyring.instances import wait_until_all_hold
from shared.keyring.journal import Rotation
from shared.keyring.lease import under_lease
from shared.keyring.model import KEY_BYTES, DataKey, Status, fingerprint
from shared.keyring.wrapping import UnwrapError, Wrapping

STEPS: Final = 2
"""To add, and to promote."""


@dataclass(frozen=True, slots=True)
class NewDek:
    """One rotation of this type."""

    database: Database
    wrapping: Wrapping
    request: RotateRequest
    random: Callable[[int], bytes]

    async def add(self, begun: Progress, version: int) -> None:
        """Stores the new data key as pending, in one commit with the beginning of the rotation."""
        secret = self.random(KEY_BYTES)
        data_key_id = uuid.UUID(bytes=self.random(16), version=4).hex
        wrapped = await self.wrapping.wrap(data_key_id, secret)
        target.refuse_another(wrapped, version)

        def write(connection: Connection, now: float) -> None:
            created_at = datetime.fromtimestamp(now, UTC)
            journal.begin(connection, now, begun, added=data_key_id)
            new = DataKey(data_key_id, Status.PENDING, wrapped, fingerprint(secret), created_at)
            store.insert(connection, new)

        await under_lease(self.database, self.request.token, write)

    async def retarget(self, rotation: Rotation, version: int) -> Rotation:
        """Wraps the new data key by another version before it is made active."""
        data_key_id = rotation.added or ""
        new = await self.database.read(lambda connection: store.find(connection, data_key_id))
        wrapped = None
        if new is not None:
            with suppress(UnwrapError):  # what is wrong with it is said when it is promoted
                wrapped = await self.wrapping.wrap(data_key_id, await self.wrapping.unwrap(new))
                target.refuse_another(wrapped, version)

        def write(connection: Connection, now: float) -> Rotation:
            journal.still(connection, rotation)
            if new and wrapped and not store.rewrap(connection, data_key_id, new.wrapped, wrapped):
                raise RefusedError(f"data key {data_key_id} was changed by another hand meanwhile; resume once more")
            return journal.retarget(connection, now, rotation, version)

        return await under_lease(self.database, self.request.token, write)

    async def promote(self, rotation: Rotation, show: Callable[[], Awaitable[None]]) -> None:
        """Makes it active, once every instance holds it, and retires the one that was."""
        data_key_id = rotation.added or ""
        new = await self.database.read(lambda connection: store.find(connection, data_key_id))
        problem = None
        if new is None:
            problem = "the new data key is no longer in the keyring; begin another rotation"
        else:
            try:
                await self.wrapping.unwrap(new)
            except UnwrapError as error:
                problem = f"the new data key was not made active: {error}"
        if problem is None:
            await show()
            await wait_until_all_hold(self.database, data_key_id)

        def write(connection: Connection, now: float) -> None:
            journal.still(connection, rotation)
            former = store.active(connection)
            if problem is not None:
                journal.add_problem(connection, rotation, Problem(id=data_key_id, why=problem))
                journal.update(connection, now, rotation, state=RotationState.FAILED.value)
                return
            if former:
                store.change_status(connection, former.id, Status.ACTIVE, Status.RETIRED)
            if not store.change_status(connection, data_key_id, Status.PENDING, Status.ACTIVE):
                raise RefusedError(f"data key {data_key_id} is no longer pending; roll the rotation back")
            columns = {"former": former.id if former else None, "done": STEPS}
            journal.update(connection, now, rotation, state=RotationState.DONE.value, **columns)

        await under_lease(self.database, self.request.token, write)
