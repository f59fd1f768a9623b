"""The steps of a rotation; `run`, `resume` and `rollback` put them in their order.

Each step is shown, timed, and recorded in the keyring's journal, so that the next runner, on any machine, knows what
was done and what failed.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from services.rotator.backups import (
    BackupError,
    BackupOrigin,
    compare_with_keyring,
    may_unwrap,
    read_header,
    read_whole_backup,
    write_backup,
)
from services.rotator.report import BackupSummary, RotatorError, StepProgress, StepResult, describe_done, get_unit
from services.rotator.session import CommandSession
from services.rotator.verification import decrypt_row, find_own_problems, find_unproven_rows, verify_with_retries
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
    list_pages,
)
from shared.keyring.journal import MAX_DETAIL_LENGTH
from shared.keyring.model import LOCAL_KEK
from shared.kms.port import KeyDescription, KmsError, KmsKey, VersionState
from shared.kms.registry import normalise_key_name

PROBE_AAD: Final = b"keypulse rotator"
"""What a value is bound to that is encrypted to see what a key does."""


async def get_usable_primary(kms: KmsKey, timeout: float, next_command: str) -> str:
    """The primary version of `read_usable_key`, with its errors."""
    return str((await read_usable_key(kms, timeout, next_command)).primary_version)


async def read_usable_key(kms: KmsKey, timeout: float, next_command: str) -> KeyDescription:
    """A key with a usable primary version. Raises RotatorError if there is none, or KMS cannot be read."""
    try:
        key = await kms.describe_key(timeout=timeout)
    except KmsError as error:
        raise RotatorError(f"the primary version of the KMS key cannot be read: {error}", next_command) from None
    if key.versions and all(each.provider_state == "soft-deleted" for each in key.versions):
        raise RotatorError("the KMS key is soft-deleted: nothing can be wrapped by it; restore the key", next_command)
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
    return key


async def wait_for_primary(session: CommandSession, version: str, next_command: str) -> None:
    """Returns once Encrypt has used `version` several times in a row: a new primary takes effect gradually.

    Raises RotatorError if Encrypt does not within `primary_timeout`; nothing was changed.
    """
    settings, in_a_row, last_result = session.settings, 0, "no answer"
    try:
        async with asyncio.timeout(settings.primary_timeout):
            while True:
                try:
                    result = await session.kms.encrypt(os.urandom(16), PROBE_AAD, timeout=settings.kms_timeout)
                    in_a_row = in_a_row + 1 if result.version == version else 0
                    last_result = f"version {result.version}"
                except KmsError as error:
                    in_a_row, last_result = 0, str(error)
                if in_a_row == settings.primary_checks:
                    return
                await asyncio.sleep(settings.primary_check_interval)
    except TimeoutError:
        raise RotatorError(
            f"Encrypt has not used version {version} {settings.primary_checks} times in a row within "
            f"{settings.primary_timeout:g} s (the last answer: {last_result}). A new primary version needs "
            f"{session.kms.profile.propagation} to take effect",
            next_command,
        ) from None


_AAD: Final = b"keypulse rotator smoke"


async def run_smoke_test(session: CommandSession, next_command: str) -> str:
    """The results of all checks, joined. Raises RotatorError, which names each check that failed."""

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
            advice = f"{error.waiting_advice}. {session.kms.profile.advise(error.reason, error.cause)}"
            raise CheckError(str(error), advice) from None
        if unwrapped.plaintext != secret:
            raise CheckError(
                "decrypt returned other bytes than were encrypted", "do not rotate; contact the KMS administrators"
            )
        return "a round trip succeeds"

    results = await run_checks([Check("keyring", keyring), Check("KMS", kms)])
    failed = [format_line(result) for result in results if not result.is_ok]
    if failed:
        raise RotatorError(f"the smoke test failed, nothing was changed: {' / '.join(failed)}", next_command)
    return ", ".join(f"{result.name} {result.detail}" for result in results)


_CALLS_PER_DATA_KEY: Final = {JournalStep.ROTATE: 3, JournalStep.ROLLBACK: 1, JournalStep.VERIFY: 1}
"""Calls of KMS for each data key: they take most of the time, so the progress bar counts them."""
_MAX_STALLED_CALLS: Final = 10
"""Calls in a row that change nothing, at most: it would never end."""

_MAX_TRIED_ROWS: Final = 8
"""Data keys that are unwrapped before the key of the settings is refused."""

T = TypeVar("T")


class _Result(NamedTuple):
    detail: str
    outcome: StepOutcome = StepOutcome.SUCCEEDED
    backup: JournalBackup | None = None


class RotationSteps:
    """The steps of one rotation. Each may raise RotatorError, AdministrationError or BackupError.

    The keyring may not know `rotation_id` yet. `next_command` is what to type once the cause of a failure is fixed.
    """

    def __init__(
        self, session: CommandSession, token: str, type_: RotationType, rotation_id: str, next_command: str
    ) -> None:
        self._session, self._settings, self._administration = session, session.settings, session.administration
        self._token, self._type, self._id, self._next_command = token, type_, rotation_id, next_command
        self._finished_calls = 0  # of the steps that are over

    async def run_smoke_test(self) -> None:
        await self._run_step(JournalStep.SMOKE, run_smoke_test(self._session, self._next_command), _Result)

    async def get_target_version(self) -> str:
        """The version that everything is to be wrapped by: the primary one, which is usable."""
        primary = get_usable_primary(self._session.kms, self._settings.kms_timeout, self._next_command)
        return await self._run_step(JournalStep.PRIMARY_VERSION, primary, lambda version: _Result(f"version {version}"))

    async def create_backup(self, earlier: Sequence[JournalBackup] = ()) -> tuple[Path, BackupSummary]:
        """The backup of this rotation: the first of its `earlier` backups that is intact, or a new one."""
        for backup in earlier:
            file = self._session.backups.folder / backup.name
            try:
                summary = await read_whole_backup(file, self._session.wrapping)
            except BackupError:
                continue  # it is on another machine, or damaged
            if backup.sha256 == summary.sha256:
                return file, summary
        return await self._run_step(JournalStep.BACKUP, self._write_backup(), _describe_backup)

    async def _write_backup(self) -> tuple[Path, BackupSummary]:
        if self._settings.driver.has_own_keys:
            await self._refuse_other_key()
        usage = await self._administration.count_key_usage()
        if usage.keyring is None:
            raise BackupError("the service does not report which keyring it has; expected `keyring` in its key usage")
        # The keyring's clock, the same on every machine.
        now = usage.counted_at or datetime.fromtimestamp(self._session.clock(), UTC)
        file, wrapping = self._session.backups.get_new_path(self._id, now), self._session.wrapping
        try:
            needs = await self._list_needed_versions(wrapping.kek, wrapping.timeout)
        except KmsError as error:
            raise BackupError(f"KMS does not tell which versions the backup needs: {error}") from None
        summary = await write_backup(
            file,
            self._administration,
            wrapping,
            origin=BackupOrigin(usage.keyring, self._settings.driver.location, self._id, now),
            needs=needs,
            other_keks={each.kek for each in usage.versions} - {wrapping.kek, LOCAL_KEK},
        )
        try:
            await read_whole_backup(file, wrapping)  # before anything is changed
        except BackupError:
            file.unlink(missing_ok=True)
            raise
        return file, summary

    async def _refuse_other_key(self) -> None:
        """Raises BackupError where `kms` is another key of the name: only it would open the backup."""
        wrapping, tried = self._session.wrapping, 0
        pages = list_pages(self._administration.list_backup_rows)
        ours = (row async for page in pages for row in page if normalise_key_name(row.kek) == wrapping.kek)
        async with aclosing(ours) as rows:
            async for row in rows:
                try:
                    if await may_unwrap(decrypt_row(row, wrapping.kms, wrapping.timeout)):
                        return
                except KmsError as error:
                    raise BackupError(f"KMS does not tell whether it wraps the data keys: {error}") from None
                tried += 1
                if tried == _MAX_TRIED_ROWS:
                    break
        if tried:
            raise BackupError(
                "`kms` of the rotator unwraps none of the data keys that name it: another key has the same name; "
                f"compare {self._settings.kms.address_setting} with the service's"
            )

    async def _list_needed_versions(self, kek: str, timeout: float) -> set[str]:
        """The primary version, where that is proven to wrap every row; otherwise a row may be of any."""
        kms, list_rows = self._session.kms, self._administration.list_backup_rows
        described = await kms.describe_key(timeout=timeout)
        primary = described.primary_version
        if primary and not await find_unproven_rows(list_rows, kms, kek, primary, timeout=timeout):
            return {primary}
        return {each.id for each in described.versions if each.state.may_have_ciphertexts}

    async def wait_for_primary(self, version: str) -> None:
        in_use = wait_for_primary(self._session, version, self._next_command)
        await self._run_step(JournalStep.PRIMARY_IN_USE, in_use, lambda _: _Result(f"Encrypt uses version {version}"))

    async def rotate(self, version: str, *, retarget: bool = False) -> RotationProgress:
        """Begins the rotation or continues it, to its end; with `retarget` to `version`, whatever its target was."""
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
                # All instances must know the new data key before one writes by it.
                await self._administration.reload_instances()
            return progress

        return await self._run_step(
            JournalStep.ROTATE, self._repeat_batches(JournalStep.ROTATE, batch), _describe_progress
        )

    async def rollback(self) -> RotationProgress:
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
        return sum(each.data_keys for each in (await self._administration.count_key_usage()).versions)

    def _report_progress(self, step: JournalStep, done: int, total: int, later_calls: int = 0) -> None:
        calls = self._finished_calls + _CALLS_PER_DATA_KEY[step] * done
        whole = self._finished_calls + _CALLS_PER_DATA_KEY[step] * total + later_calls
        unit = "data key" if step is JournalStep.VERIFY else get_unit(self._type)
        self._session.progress.report_progress(StepProgress(step, done, total, calls, whole, unit))

    async def reload(self) -> None:
        await self._run_step(JournalStep.RELOAD, self._administration.reload_instances(), lambda _: _Result("done"))

    async def verify(self, file: Path | None = None) -> tuple[VerificationResult, list[Problem]]:
        """Reads everything, compares each data key with the backup in `file`, and gives what is wrong."""

        async def read_all() -> tuple[VerificationResult, list[Problem]]:
            differing: list[Problem] = []
            if file and self._settings.driver.has_own_keys:
                differing = await compare_with_keyring(file, self._administration, self._session.wrapping)
            total = await self._count_data_keys()
            found = await verify_with_retries(
                self._session,
                self._settings.verify_mode,
                lambda done: self._report_progress(JournalStep.VERIFY, min(done, total), total),
            )
            return found, [*differing, *find_own_problems(found, self._settings.driver)]

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
    header = read_header(file)
    needs = header.get_journal_needs()
    backup = JournalBackup(name=file.name, sha256=summary.sha256, needs=needs)
    named = [*filter(None, needs), *(f"any of {kek}" for kek in header.other_keks)]
    return _Result(f"{file.name}, needs versions {', '.join(named)}", backup=backup)


def _describe_progress(progress: RotationProgress) -> _Result:
    left_out = progress.state is RotationState.FAILED
    outcome = StepOutcome.PROBLEMS if left_out else StepOutcome.SUCCEEDED
    return _Result(f"{describe_done(progress)}, {progress.state}", outcome)


def _describe_problems(problems: Sequence[Problem]) -> _Result:
    if problems:
        return _Result(f"problems: {len(problems)}", StepOutcome.PROBLEMS)
    return _Result("everything can be read")
