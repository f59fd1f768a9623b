"""The KMS key's primary version: which one it is, whether it is usable, and whether Encrypt uses it yet.

The smoke test before a rotation: the keyring answers, and the KMS key encrypts and decrypts.

The steps of a rotation; `run`, `resume` and `rollback` put them in their order.

Each step is shown, timed, and recorded in the keyring's journal, so that the next runner, on any machine, knows what
was done and what failed.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from services.rotator import backups as backup_file
from services.rotator import backups as folder
from services.rotator.backups import BackupError, BackupSummary
from services.rotator.model import RotatorError, StepProgress, StepResult
from services.rotator.session import CommandSession
from services.rotator.verification import find_own_problems, verify_with_retries
from services.rotator.version_proof import find_unproven_rows
from shared.check import Check, CheckError, format_line, run_checks
from shared.keyring.administration import (
    AdministrationError,
    JournalBackup,
    JournalEntry,
    JournalStep,
    Problem,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
    VerificationResult,
)
from shared.keyring.journal import MAX_DETAIL_LENGTH
from shared.keyring.model import get_version_sort_key
from shared.kms.port import KmsError, KmsKey, VersionState

_PROBE_AAD: Final = b"keypulse rotator"


async def get_usable_primary(kms: KmsKey, timeout: float, next_command: str) -> str:
    """The KMS key's primary version.

    Args:
        kms: the key.
        timeout: seconds of one call.
        next_command: what to type once the problem is fixed.

    Raises:
        RotatorError: there is none, it is not usable, or KMS cannot be read.
    """
    try:
        key = await kms.describe_key(timeout=timeout)
    except KmsError as error:
        raise RotatorError(f"the primary version of the KMS key cannot be read: {error}", next_command) from None
    if key.primary_version is None:
        raise RotatorError("the KMS key has no primary version; make a version and set it as the primary", next_command)
    primary = key.find_version(key.primary_version)
    if primary is None or primary.state is not VersionState.USABLE:
        state = primary.state_label if primary else "not among its versions"
        raise RotatorError(
            f"the primary version {key.primary_version} of the KMS key is {state}: nothing can be wrapped by it; "
            "enable it, or set another version as the primary",
            next_command,
        )
    return key.primary_version


async def wait_for_primary(
    kms: KmsKey, version: str, next_command: str, *, checks: int, total_timeout: float, interval: float, timeout: float
) -> None:
    """Returns once Encrypt has used `version` several times in a row: a new primary takes effect gradually.

    Args:
        kms: the key.
        version: the expected primary version.
        next_command: what to type later.
        checks: how many times in a row.
        total_timeout: seconds for all calls.
        interval: seconds between two calls.
        timeout: seconds of one call.

    Raises:
        RotatorError: Encrypt does not within `total_timeout`; nothing was changed.
    """
    in_a_row, last_result = 0, "no answer"
    try:
        async with asyncio.timeout(total_timeout):
            while True:
                try:
                    result = await kms.encrypt(os.urandom(16), _PROBE_AAD, timeout=timeout)
                    in_a_row = in_a_row + 1 if result.version == version else 0
                    last_result = f"version {result.version}"
                except KmsError as error:
                    in_a_row, last_result = 0, str(error)
                if in_a_row == checks:
                    return
                await asyncio.sleep(interval)
    except TimeoutError:
        raise RotatorError(
            f"Encrypt has not used version {version} {checks} times in a row within {total_timeout:g} s (the last "
            f"answer: {last_result}). A new primary version needs {kms.profile.propagation} to take effect",
            next_command,
        ) from None


_AAD: Final = b"keypulse rotator smoke"


async def run_smoke_test(session: CommandSession, next_command: str) -> str:
    """Runs all checks and returns their results, joined.

    Args:
        session: the rotator's keyring and KMS key.
        next_command: what to type once the problem is fixed.

    Raises:
        RotatorError: checks failed; it names all of them.
    """

    async def keyring() -> str:
        try:
            keys = await session.administration.list_keys(limit=1)
        except AdministrationError as error:
            raise CheckError(error.error, error.hint or "check `driver`") from None
        if not keys:
            raise CheckError("it holds no data key", "start the service, which creates the first one")
        return "answers"

    async def kms() -> str:
        secret, timeout = os.urandom(32), session.settings.kms_timeout
        try:
            wrapped = await session.kms.encrypt(secret, _AAD, timeout=timeout)
            unwrapped = await session.kms.decrypt(wrapped.ciphertext, _AAD, timeout=timeout)
        except KmsError as error:
            raise CheckError(str(error), "see that reason in docs/KMS_OPERATIONS.md") from None
        if unwrapped.plaintext != secret:
            raise CheckError(
                "decrypt returned other bytes than were encrypted", "do not rotate; contact the KMS administrators"
            )
        return "a round trip succeeds"

    results = await run_checks([Check("keyring", keyring), Check("KMS", kms)], time.monotonic)
    failed = [format_line(result) for result in results if not result.is_ok]
    if failed:
        raise RotatorError(f"the smoke test failed, nothing was changed: {' / '.join(failed)}", next_command)
    return ", ".join(f"{result.name} {result.detail}" for result in results)


_CALLS_PER_DATA_KEY: Final = {JournalStep.ROTATE: 3, JournalStep.ROLLBACK: 1, JournalStep.VERIFY: 1}
"""Calls of KMS for each data key: they take most of the time, so the progress bar counts them."""
_MAX_STALLED_CALLS: Final = 10
"""Calls in a row that change nothing, at most: it would never end."""

T = TypeVar("T")


class _Result(NamedTuple):
    """What a finished step records in the journal."""

    detail: str
    outcome: StepOutcome = StepOutcome.SUCCEEDED
    backup: JournalBackup | None = None


class RotationSteps:
    """Those of one rotation. Any of them may raise RotatorError, AdministrationError or BackupError.

    Args:
        session: of the command.
        token: of the lease.
        type_: what is rotated.
        rotation_id: of this rotation, whether the keyring knows it yet or not.
        next_command: what to type once the cause of a failure is fixed.
    """

    def __init__(
        self, session: CommandSession, token: str, type_: RotationType, rotation_id: str, next_command: str
    ) -> None:
        self._session, self._settings, self._administration = session, session.settings, session.administration
        self._token, self._type, self._id, self._next_command = token, type_, rotation_id, next_command
        self._finished_calls = 0  # of the steps that are over

    async def run_smoke_test(self) -> None:
        """Checks that everything that a rotation needs works."""
        await self._run_step(JournalStep.SMOKE, run_smoke_test(self._session, self._next_command), _Result)

    async def get_target_version(self) -> str:
        """The version that everything is to be wrapped by: the primary one, which is usable."""
        primary = get_usable_primary(self._session.kms, self._settings.kms_timeout, self._next_command)
        return await self._run_step(JournalStep.PRIMARY_VERSION, primary, lambda version: _Result(f"version {version}"))

    async def create_backup(self, earlier: Sequence[JournalBackup] = ()) -> tuple[Path, BackupSummary]:
        """The backup of this rotation: the first of its `earlier` ones that is intact; otherwise a new one."""
        for backup in earlier:
            file = self._session.backups.folder / backup.name
            try:
                summary = await folder.read_whole_backup(file, self._session.kms, timeout=self._settings.kms_timeout)
            except BackupError:
                continue  # it is on another machine, or damaged
            if backup.sha256 == summary.sha256:
                return file, summary
        return await self._run_step(JournalStep.BACKUP, self._write_backup(), _describe_backup)

    async def _write_backup(self) -> tuple[Path, BackupSummary]:
        usage = await self._administration.count_key_usage()
        now = usage.counted_at or self._session.now_utc  # the keyring's clock, the same on whatever machine
        file, timeout = self._session.backups.get_new_path(self._id, now), self._settings.kms_timeout
        key = self._settings.kms.key
        try:
            needs = await self._list_needed_versions(key, timeout)
        except KmsError as error:
            raise BackupError(f"KMS does not tell which versions the backup needs: {error}") from None
        summary = await backup_file.write_backup(
            file,
            self._administration,
            self._session.kms,
            rotation_id=self._id,
            kek=key,
            needs=needs,
            now=now,
            timeout=timeout,
        )
        try:
            await folder.read_whole_backup(file, self._session.kms, timeout=timeout)  # before anything is changed
        except BackupError:
            file.unlink(missing_ok=True)
            raise
        return file, summary

    async def _list_needed_versions(self, kek: str, timeout: float) -> set[str]:
        """The primary version, where that is proven to wrap every row; otherwise a row may be of any."""
        kms, list_rows = self._session.kms, self._administration.list_backup_rows
        described = await kms.describe_key(timeout=timeout)
        primary = described.primary_version
        if primary and not await find_unproven_rows(list_rows, kms, kek, primary, timeout=timeout):
            return {primary}
        return {each.id for each in described.versions if each.state.may_have_ciphertexts}

    async def wait_for_primary(self, version: str) -> None:
        """Waits until Encrypt uses `version`."""
        settings = self._settings
        in_use = wait_for_primary(
            self._session.kms,
            version,
            self._next_command,
            checks=settings.primary_checks,
            total_timeout=settings.primary_timeout,
            interval=settings.primary_check_interval,
            timeout=settings.kms_timeout,
        )
        await self._run_step(JournalStep.PRIMARY_IN_USE, in_use, lambda _: _Result(f"Encrypt uses version {version}"))

    async def rotate(self, version: str, *, retarget: bool = False) -> RotationProgress:
        """Begins where the keyring does not know the rotation yet, and goes on to its end, batch by batch.

        With `retarget` it continues with `version`, whatever its first target was.
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

        return await self._run_step(
            JournalStep.ROTATE, self._repeat_batches(JournalStep.ROTATE, batch), _describe_progress
        )

    async def rollback(self) -> RotationProgress:
        """Undoes it to its beginning."""
        undoing = self._repeat_batches(
            JournalStep.ROLLBACK, lambda: self._administration.rollback(self._id, self._token)
        )
        return await self._run_step(JournalStep.ROLLBACK, undoing, _describe_progress)

    async def _repeat_batches(
        self, step: JournalStep, run_batch: Callable[[], Awaitable[RotationProgress]]
    ) -> RotationProgress:
        before, stalled, to_verify = None, 0, await self._count_data_keys()
        while True:
            progress = await run_batch()
            done = progress.total - progress.done if step is JournalStep.ROLLBACK else progress.done
            self._report_progress(step, done, progress.total, _CALLS_PER_DATA_KEY[JournalStep.VERIFY] * to_verify)
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

    def _report_progress(self, step: JournalStep, done: int, total: int, later_calls: int = 0) -> None:
        """How far a step is; `later_calls` calls of KMS follow it."""
        calls, whole = (
            self._finished_calls + _CALLS_PER_DATA_KEY[step] * done,
            self._finished_calls + _CALLS_PER_DATA_KEY[step] * total + later_calls,
        )
        self._session.progress.report_progress(StepProgress(step, done, total, calls, whole))

    async def reload(self) -> None:
        """Every instance of the service reads the keyring again."""
        await self._run_step(JournalStep.RELOAD, self._administration.reload_instances(), lambda _: _Result("done"))

    async def verify(self, file: Path | None = None) -> tuple[VerificationResult, list[Problem]]:
        """Reads everything, compares each data key with the backup in `file`, and gives what is wrong."""

        async def read_all() -> tuple[VerificationResult, list[Problem]]:
            differing: list[Problem] = []
            if file and self._settings.driver.has_own_keys:
                kms, timeout = self._session.kms, self._settings.kms_timeout
                differing = await folder.compare_with_keyring(file, self._administration, kms, timeout=timeout)
            total = await self._count_data_keys()
            found = await verify_with_retries(
                self._session,
                self._settings.verify_mode,
                lambda done: self._report_progress(JournalStep.VERIFY, min(done, total), total),
            )
            return found, [*differing, *find_own_problems(found)]

        return await self._run_step(JournalStep.VERIFY, read_all(), lambda found: _describe_problems(found[1]))

    async def record_nothing_to_do(self) -> None:
        """Writes that nothing is due, which ends an earlier failure."""
        await self._add_journal_entry(JournalStep.PLAN, _Result("", StepOutcome.NOTHING_TO_DO))

    async def _run_step(self, step: JournalStep, action: Awaitable[T], describe: Callable[[T], _Result]) -> T:
        now = asyncio.get_running_loop().time
        started_at = now()
        self._session.progress.report_step(step)
        try:
            value = await action
        except (RotatorError, AdministrationError, BackupError) as error:
            with suppress(AdministrationError):  # perhaps it is just what failed
                await self._add_journal_entry(step, _Result(str(error), StepOutcome.FAILED))
            raise
        result = describe(value)
        seconds = now() - started_at
        self._session.steps.append(StepResult(step=step, outcome=result.outcome, detail=result.detail, seconds=seconds))
        self._session.progress.report_step(step, result.detail)
        await self._add_journal_entry(step, result)
        return value

    async def _add_journal_entry(self, step: JournalStep, result: _Result) -> None:
        backup = result.backup
        entry = JournalEntry(
            step=step,
            outcome=result.outcome,
            rotation_type=self._type,
            backup_name=backup and backup.name,
            sha256=backup and backup.sha256,
            needs=backup and backup.needs,
            detail=result.detail.replace("\0", " ")[:MAX_DETAIL_LENGTH],
        )
        await self._administration.add_journal_entry(self._id, self._token, entry)


def _describe_backup(created: tuple[Path, BackupSummary]) -> _Result:
    file, summary = created
    header = backup_file.read_header(file)
    needs = tuple(sorted({header.kek_version, *header.needs}, key=get_version_sort_key))
    backup = JournalBackup(name=file.name, sha256=summary.sha256, needs=needs)
    return _Result(f"{file.name}, needs versions {', '.join(needs)}", backup=backup)


def _describe_progress(progress: RotationProgress) -> _Result:
    left_out = progress.state is RotationState.FAILED
    outcome = StepOutcome.PROBLEMS if left_out else StepOutcome.SUCCEEDED
    return _Result(f"{progress.done} of {progress.total}, {progress.state}", outcome)


def _describe_problems(problems: Sequence[Problem]) -> _Result:
    if problems:
        return _Result(f"problems: {len(problems)}", StepOutcome.PROBLEMS)
    return _Result("everything can be read")
