"""The steps of a rotation, each for itself; `run`, `resume` and `rollback` put them in their order.

Each is told, timed, and noted in the keyring's journal, so that whoever comes next, on whatever machine, knows what was
done, and what failed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from services.rotator import backup, backups, target
from services.rotator.backup import BackupError, Summary
from services.rotator.model import Amount, RotatorError, Took
from services.rotator.plan import PROBLEMS
from services.rotator.session import Session
from services.rotator.smoke import smoke
from services.rotator.verify import failures, verified
from shared.keyring.administration import (
    AdministrationError,
    Problem,
    Progress,
    RotateRequest,
    RotationState,
    RotationType,
    Verification,
)
from shared.keyring.seen import NOTHING_TO_DO

_LONGEST_NOTE: Final = 1000
_CALLS: Final = {"rotate": 3, "rollback": 1, "verify": 1}
"""Of KMS, for each data key: they take the time, so the bar counts them."""
_STALLED_CALLS: Final = 10
"""Calls in a row that change nothing: it would never end."""

T = TypeVar("T")


class Steps:
    """Those of one rotation. Any of them may raise RotatorError, AdministrationError or BackupError.

    Args:
        session: the way to everything.
        token: of the lease.
        type_: what is rotated.
        rotation_id: of this rotation, whether the keyring knows it yet or not.
        again: what to type when something is mended that was missing.
    """

    def __init__(self, session: Session, token: str, type_: RotationType, rotation_id: str, again: str) -> None:
        self._session, self._settings, self._administration = session, session.settings, session.administration
        self._token, self._type, self._id, self._again = token, type_, rotation_id, again
        self._calls = 0  # of the steps that are over

    async def smoke(self) -> None:
        """Whether all that is needed works."""
        await self._step("smoke", smoke(self._session, self._again), str)

    async def target(self) -> int:
        """The version that everything is to be wrapped by: the primary one, which is ENABLED."""
        asked = target.enabled_primary(self._session.kms, self._settings.kms_timeout, self._again)
        return await self._step("target", asked, lambda number: f"version {number}")

    async def backup(self, noted: tuple[str, ...] = ()) -> tuple[Path, Summary]:
        """The backup of this rotation: that of the steps `noted`, where it is here and whole; else a new one."""
        for known in backups.noted(noted):
            file = self._session.backups.folder / known.name
            try:
                summary = await backups.check(file, self._session.kms, timeout=self._settings.kms_timeout)
            except BackupError:
                continue  # it is on another machine, or damaged
            if known.sha256 == summary.sha256:
                return file, summary
        return await self._step("backup", self._backup(), lambda made: backups.note(*made))

    async def _backup(self) -> tuple[Path, Summary]:
        census = await self._administration.census()
        now = census.counted_at or self._session.now  # the keyring's clock, the same on whatever machine
        file, timeout = self._session.backups.new(self._id, now), self._settings.kms_timeout
        key = self._settings.kms.key
        made = await backup.write(
            file,
            self._administration,
            self._session.kms,
            rotation_id=self._id,
            needs={each.kek_version for each in census.versions if each.kek == key and each.data_keys},
            now=now,
            timeout=timeout,
        )
        try:
            await backups.check(file, self._session.kms, timeout=timeout)  # before anything is changed
        except BackupError:
            file.unlink(missing_ok=True)
            raise
        return file, made

    async def encrypt(self, version: int) -> None:
        """Waits until Encrypt uses `version`."""
        settings = self._settings
        settled = target.settled(
            self._session.kms,
            version,
            self._again,
            checks=settings.encrypt_checks,
            wait=settings.encrypt_wait,
            pause=settings.encrypt_pause,
            timeout=settings.kms_timeout,
        )
        await self._step("encrypt", settled, lambda _: f"uses version {version}")

    async def rotate(self, version: int, *, retarget: bool = False) -> Progress:
        """Begins where the keyring does not know the rotation yet, and goes on to its end, batch by batch.

        With `retarget` it goes on with `version`, whatever it was begun for.
        """
        request = RotateRequest(
            rotation_id=self._id,
            type=self._type,
            token=self._token,
            caller=self._session.caller,
            target_version=version,
            batch=self._settings.batch,
            retarget=retarget,
        )

        async def batch() -> Progress:
            progress = await self._administration.rotate(request)
            if self._type is RotationType.NEW_DEK and progress.state is RotationState.RUNNING:
                await self._administration.reload()  # who reads must know the new data key before anybody writes by it
            return progress

        return await self._step("rotate", self._to_the_end("rotate", batch), _told)

    async def rollback(self) -> Progress:
        """Undoes it to its beginning."""
        undoing = self._to_the_end("rollback", lambda: self._administration.rollback(self._id, self._token))
        return await self._step("rollback", undoing, _told)

    async def _to_the_end(self, step: str, batch: Callable[[], Awaitable[Progress]]) -> Progress:
        before, stalled, to_verify = None, 0, await self._count()
        while True:
            progress = await batch()
            done = progress.total - progress.done if step == "rollback" else progress.done
            self._tell(step, done, progress.total, _CALLS["verify"] * to_verify)
            if progress.state is not RotationState.RUNNING:
                self._calls += _CALLS[step] * progress.total
                return progress
            stalled = stalled + 1 if progress == before else 0
            if stalled == _STALLED_CALLS:
                raise RotatorError(f"rotation {self._id} does not go on: call after call changes nothing", "status")
            before = progress

    async def _count(self) -> int:
        """How many data keys there are."""
        return sum(each.data_keys for each in (await self._administration.census()).versions)

    def _tell(self, step: str, done: int, total: int, later: int = 0) -> None:
        """How far a step is; `later` calls of KMS follow it."""
        calls, whole = self._calls + _CALLS[step] * done, self._calls + _CALLS[step] * total + later
        self._session.tell.progress(Amount(step, done, total, calls, whole))

    async def reload(self) -> None:
        """Every instance of the service reads the keyring again."""
        await self._step("reload", self._administration.reload(), lambda _: "done")

    async def verify(self, file: Path | None = None) -> tuple[Verification, list[Problem]]:
        """Reads everything, compares each data key with the backup in `file`, and gives what is wrong."""

        async def look() -> tuple[Verification, list[Problem]]:
            differing: list[Problem] = []
            if file:
                kms, timeout = self._session.kms, self._settings.kms_timeout
                differing = await backups.differences(file, self._administration, kms, timeout=timeout)
            total = await self._count()
            found = await verified(
                self._session, self._settings.verify_mode, lambda done: self._tell("verify", min(done, total), total)
            )
            return found, [*differing, *failures(found)]

        return await self._step(
            "verify", look(), lambda seen: PROBLEMS + str(len(seen[1])) if seen[1] else "all is well"
        )

    async def nothing(self) -> None:
        """Notes that nothing is due, which ends a failure that stood before."""
        await self._note(NOTHING_TO_DO + self._type)

    async def _step(self, name: str, work: Awaitable[T], seen: Callable[[T], str]) -> T:
        now = asyncio.get_running_loop().time
        began = now()
        self._session.tell.step(name)
        try:
            outcome = await work
        except (RotatorError, AdministrationError, BackupError) as error:
            with suppress(AdministrationError):  # perhaps it is just what failed
                await self._note(f"failed {name}: {error}"[:_LONGEST_NOTE])
            raise
        told = Took(step=name, seen=seen(outcome), seconds=now() - began)
        self._session.took.append(told)
        self._session.tell.step(name, told.seen)
        await self._note(f"failed {name}: {told.seen}" if told.seen.startswith(PROBLEMS) else f"{name} {told.seen}")
        return outcome

    async def _note(self, step: str) -> None:
        await self._administration.note(self._id, self._token, step)


def _told(progress: Progress) -> str:
    return f"{progress.done} of {progress.total}, {progress.state}"
