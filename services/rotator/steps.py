"""The steps of a rotation, each for itself; `run`, `resume` and `rollback` put them in their order.

Each is told, timed, and noted in the keyring's journal, so that whoever comes next, on whatever machine, knows what was
done, and what failed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from services.rotator import preflight
from services.rotator.backups import backup_file, folder
from services.rotator.backups.backup_file import BackupError, BackupSummary
from services.rotator.model import RotatorError, StepProgress, StepResult
from services.rotator.plan import PROBLEMS_PREFIX
from services.rotator.preflight import run_smoke_test
from services.rotator.session import Session
from services.rotator.verification import find_own_problems, verify_with_retries
from shared.keyring.administration import (
    AdministrationError,
    Problem,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    VerificationResult,
)
from shared.keyring.journal.metrics import NOTHING_TO_DO

_MAX_ENTRY_LENGTH: Final = 1000
_CALLS_PER_DATA_KEY: Final = {"rotate": 3, "rollback": 1, "verify": 1}
"""Of KMS, for each data key: they take the time, so the bar counts them."""
_MAX_STALLED_CALLS: Final = 10
"""Calls in a row that change nothing: it would never end."""

T = TypeVar("T")


class RotationSteps:
    """Those of one rotation. Any of them may raise RotatorError, AdministrationError or BackupError.

    Args:
        session: the way to everything.
        token: of the lease.
        type_: what is rotated.
        rotation_id: of this rotation, whether the keyring knows it yet or not.
        next_command: what to type when something is mended that was missing.
    """

    def __init__(self, session: Session, token: str, type_: RotationType, rotation_id: str, next_command: str) -> None:
        self._session, self._settings, self._administration = session, session.settings, session.administration
        self._token, self._type, self._id, self._next_command = token, type_, rotation_id, next_command
        self._finished_calls = 0  # of the steps that are over

    async def run_smoke_test(self) -> None:
        """Whether all that is needed works."""
        await self._run_step("smoke", run_smoke_test(self._session, self._next_command), str)

    async def get_target_version(self) -> int:
        """The version that everything is to be wrapped by: the primary one, which is ENABLED."""
        asked = preflight.get_usable_primary(self._session.kms, self._settings.kms_timeout, self._next_command)
        return await self._run_step("target", asked, lambda number: f"version {number}")

    async def create_backup(self, journal: tuple[str, ...] = ()) -> tuple[Path, BackupSummary]:
        """The backup of this rotation: that of the steps `journal`, where it is here and whole; else a new one."""
        for known in folder.parse_journal_backups(journal):
            file = self._session.backups.folder / known.name
            try:
                summary = await folder.read_whole_backup(file, self._session.kms, timeout=self._settings.kms_timeout)
            except BackupError:
                continue  # it is on another machine, or damaged
            if known.sha256 == summary.sha256:
                return file, summary
        return await self._run_step("backup", self._write_backup(), lambda made: folder.format_journal_backup(*made))

    async def _write_backup(self) -> tuple[Path, BackupSummary]:
        census = await self._administration.count_key_usage()
        now = census.counted_at or self._session.now_utc  # the keyring's clock, the same on whatever machine
        file, timeout = self._session.backups.get_new_path(self._id, now), self._settings.kms_timeout
        key = self._settings.kms.key
        made = await backup_file.write_backup(
            file,
            self._administration,
            self._session.kms,
            rotation_id=self._id,
            needed_versions={each.kek_version for each in census.versions if each.kek == key and each.data_keys},
            now=now,
            timeout=timeout,
        )
        try:
            await folder.read_whole_backup(file, self._session.kms, timeout=timeout)  # before anything is changed
        except BackupError:
            file.unlink(missing_ok=True)
            raise
        return file, made

    async def wait_for_primary(self, version: int) -> None:
        """Waits until Encrypt uses `version`."""
        settings = self._settings
        settled = preflight.wait_for_primary(
            self._session.kms,
            version,
            self._next_command,
            checks=settings.primary_checks,
            total_timeout=settings.primary_timeout,
            interval=settings.primary_check_interval,
            timeout=settings.kms_timeout,
        )
        await self._run_step("encrypt", settled, lambda _: f"uses version {version}")

    async def rotate(self, version: int, *, retarget: bool = False) -> RotationProgress:
        """Begins where the keyring does not know the rotation yet, and goes on to its end, batch by batch.

        With `retarget` it goes on with `version`, whatever it was begun for.
        """
        request = RotateRequest(
            rotation_id=self._id,
            type=self._type,
            token=self._token,
            caller=self._session.caller,
            target_version=version,
            batch_size=self._settings.batch_size,
            allows_retarget=retarget,
        )

        async def batch() -> RotationProgress:
            progress = await self._administration.rotate(request)
            if self._type is RotationType.NEW_DEK and progress.state is RotationState.RUNNING:
                await (
                    self._administration.reload_instances()
                )  # who reads must know the new data key before anybody writes by it
            return progress

        return await self._run_step("rotate", self._repeat_batches("rotate", batch), _describe_progress)

    async def rollback(self) -> RotationProgress:
        """Undoes it to its beginning."""
        undoing = self._repeat_batches("rollback", lambda: self._administration.rollback(self._id, self._token))
        return await self._run_step("rollback", undoing, _describe_progress)

    async def _repeat_batches(
        self, step: str, run_batch: Callable[[], Awaitable[RotationProgress]]
    ) -> RotationProgress:
        before, stalled, to_verify = None, 0, await self._count_data_keys()
        while True:
            progress = await run_batch()
            done = progress.total - progress.done if step == "rollback" else progress.done
            self._report_progress(step, done, progress.total, _CALLS_PER_DATA_KEY["verify"] * to_verify)
            if progress.state is not RotationState.RUNNING:
                self._finished_calls += _CALLS_PER_DATA_KEY[step] * progress.total
                return progress
            stalled = stalled + 1 if progress == before else 0
            if stalled == _MAX_STALLED_CALLS:
                raise RotatorError(f"rotation {self._id} does not go on: call after call changes nothing", "status")
            before = progress

    async def _count_data_keys(self) -> int:
        """How many data keys there are."""
        return sum(each.data_keys for each in (await self._administration.count_key_usage()).versions)

    def _report_progress(self, step: str, done: int, total: int, later_calls: int = 0) -> None:
        """How far a step is; `later_calls` calls of KMS follow it."""
        calls, whole = (
            self._finished_calls + _CALLS_PER_DATA_KEY[step] * done,
            self._finished_calls + _CALLS_PER_DATA_KEY[step] * total + later_calls,
        )
        self._session.progress.report_progress(StepProgress(step, done, total, calls, whole))

    async def reload(self) -> None:
        """Every instance of the service reads the keyring again."""
        await self._run_step("reload", self._administration.reload_instances(), lambda _: "done")

    async def verify(self, file: Path | None = None) -> tuple[VerificationResult, list[Problem]]:
        """Reads everything, compares each data key with the backup in `file`, and gives what is wrong."""

        async def look() -> tuple[VerificationResult, list[Problem]]:
            differing: list[Problem] = []
            if file:
                kms, timeout = self._session.kms, self._settings.kms_timeout
                differing = await folder.compare_with_keyring(file, self._administration, kms, timeout=timeout)
            total = await self._count_data_keys()
            found = await verify_with_retries(
                self._session,
                self._settings.verify_mode,
                lambda done: self._report_progress("verify", min(done, total), total),
            )
            return found, [*differing, *find_own_problems(found)]

        return await self._run_step(
            "verify", look(), lambda seen: PROBLEMS_PREFIX + str(len(seen[1])) if seen[1] else "all is well"
        )

    async def record_nothing_to_do(self) -> None:
        """Notes that nothing is due, which ends a failure that stood before."""
        await self._add_journal_entry(NOTHING_TO_DO + self._type)

    async def _run_step(self, name: str, action: Awaitable[T], describe: Callable[[T], str]) -> T:
        now = asyncio.get_running_loop().time
        began = now()
        self._session.progress.report_step(name)
        try:
            outcome = await action
        except (RotatorError, AdministrationError, BackupError) as error:
            with suppress(AdministrationError):  # perhaps it is just what failed
                await self._add_journal_entry(f"failed {name}: {error}"[:_MAX_ENTRY_LENGTH])
            raise
        told = StepResult(step=name, detail=describe(outcome), seconds=now() - began)
        self._session.steps.append(told)
        self._session.progress.report_step(name, told.detail)
        await self._add_journal_entry(
            f"failed {name}: {told.detail}" if told.detail.startswith(PROBLEMS_PREFIX) else f"{name} {told.detail}"
        )
        return outcome

    async def _add_journal_entry(self, step: str) -> None:
        await self._administration.add_journal_entry(self._id, self._token, step)


def _describe_progress(progress: RotationProgress) -> str:
    return f"{progress.done} of {progress.total}, {progress.state}"
