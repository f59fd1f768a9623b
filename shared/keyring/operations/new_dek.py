"""`new-dek`: a new data key is stored as pending, shown to every instance of the service, and only then made active.

Two steps, each one commit; between them nothing is encrypted with it. An instance that starts in between reads the
keyring again when it meets its first record.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection

from shared.keyring import store
from shared.keyring.administration import Problem, RefusedError, RotateRequest, RotationState
from shared.keyring.database import Database
from shared.keyring.instance_readiness import wait_for_all_instances
from shared.keyring.journal import progress
from shared.keyring.journal.progress import Rotation
from shared.keyring.model import KEY_BYTES, DataKey, DataKeyStatus, compute_fingerprint
from shared.keyring.operations import target_version
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.wrapping import KeyWrapper, UnwrapError

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
        target_version.refuse_other_version(self.wrapping, wrapped, version)

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
