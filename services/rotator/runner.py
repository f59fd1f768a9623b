"""What changes a keyring, each under the lease: `run` begins a rotation, `resume` finishes one, `rollback` undoes one.

primary_version → smoke → backup → primary_in_use → rotate → reload → verify

Until `rotate` nothing is changed, and a failure leaves nothing to be finished. `verify` comes last: a rotation without
it is not finished, whatever state the keyring gives it. `restore` puts a backup back, where the journal cannot help.
"""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.rotator.backups import BackupError, SummaryBuilder, read_pages, read_whole_backup
from services.rotator.plan import (
    build_plan,
    can_resume,
    describe_unfinished,
    get_next_commands,
    is_unfinished,
    refuse_unfinished,
)
from services.rotator.report import (
    BackupReport,
    BackupSummary,
    CommandOutcome,
    CommandReport,
    RotatorError,
    describe_done,
    format_count,
)
from services.rotator.session import CommandSession
from services.rotator.steps import RotationSteps
from services.rotator.verification import find_own_problems, verify_with_retries
from shared.keyring.administration import (
    AdministrationError,
    Problem,
    RefusedError,
    RotationProgress,
    RotationState,
    RotationType,
    UnreachableError,
)


async def run(session: CommandSession, type_: RotationType) -> CommandReport:
    """Rotates, where there is something to do. Raises RotatorError, AdministrationError, BackupError."""
    driver = session.settings.driver
    if type_ not in driver.rotation_types:
        expected = [f"run --type {each}" for each in driver.rotation_types]
        raise RotatorError(f"the driver {driver.kind} makes no new data keys; nothing was changed", *expected)
    async with session.hold_lease() as lease:
        latest = await session.administration.get_progress()
        refuse_unfinished(latest)
        same_command, now = f"run --type {type_}", session.get_database_time(lease)
        steps = RotationSteps(
            session, lease.token, type_, f"{type_}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}", same_command
        )
        version = await steps.get_target_version()
        await steps.run_smoke_test()
        usage, settings = await session.administration.count_key_usage(), session.settings
        plan = build_plan(
            type_,
            usage,
            key=settings.kms.key_name,
            primary=version,
            min_age=settings.new_dek_min_age,
            has_own_keys=driver.has_own_keys,
        )
        if not plan.data_keys:
            if latest is None or not can_resume(latest):
                await steps.record_nothing_to_do()
            return CommandReport(
                command="run", outcome=CommandOutcome.NOTHING_TO_DO, summary=plan.summary, plans=(plan,)
            )
        with _add_next_commands(same_command):
            file, summary = await steps.create_backup()
            await steps.wait_for_primary(version)
        with _add_next_commands("resume", "rollback"):
            rotation = await steps.rotate(version)
            return await _build_report(session, steps, rotation, file, summary)


async def resume(session: CommandSession) -> CommandReport:
    """Finishes the rotation that was left in the middle. Raises RotatorError, AdministrationError, BackupError."""
    async with session.hold_lease() as lease:
        latest = await session.administration.get_progress()
        if latest is None or not can_resume(latest):
            cause = f"rotation {latest.rotation_id} is {latest.state}" if latest else "there was no rotation"
            return CommandReport(command="resume", outcome=CommandOutcome.NOTHING_TO_DO, summary=cause, rotation=latest)
        if latest.is_rolling_back:
            raise RotatorError(describe_unfinished(latest), *get_next_commands(latest))
        steps = RotationSteps(session, lease.token, latest.type, latest.rotation_id, "resume")
        version = await steps.get_target_version()
        await steps.run_smoke_test()
        overtaken = latest.target_version not in {None, version}
        if overtaken and latest.state is RotationState.FAILED:  # what it could do is done, and a run does the rest
            return CommandReport(
                outcome=CommandOutcome.NOTHING_TO_DO,
                summary=f"rotation {latest.rotation_id} failed for version {latest.target_version} of "
                f"the KMS key, whose primary version is {version} by now; another run tries what is left",
                next_commands=(f"run --type {latest.type}",),
                rotation=latest,
                problems=latest.problems,
            )
        with _add_next_commands("resume", "rollback"):
            file, summary = await steps.create_backup(latest.backups)
            if latest.state is not RotationState.DONE:
                await steps.wait_for_primary(version)
                latest = await steps.rotate(version, retarget=overtaken)
            return await _build_report(session, steps, latest, file, summary)


async def rollback(session: CommandSession) -> CommandReport:
    """Undoes the latest rotation. Raises RotatorError, AdministrationError, BackupError."""
    async with session.hold_lease() as lease:
        latest = await session.administration.get_progress()
        if latest is None or (latest.state is RotationState.ROLLED_BACK and not is_unfinished(latest)):
            cause = f"rotation {latest.rotation_id} is rolled back" if latest else "there was no rotation"
            return CommandReport(
                command="rollback", outcome=CommandOutcome.NOTHING_TO_DO, summary=cause, rotation=latest
            )
        steps = RotationSteps(session, lease.token, latest.type, latest.rotation_id, "rollback")
        with _add_next_commands("rollback"):
            rotation = await steps.rollback()
            await steps.reload()
            found, unreadable = await steps.verify()
        problems = _deduplicate_problems((*rotation.problems, *unreadable))
        summary = f"rotation {rotation.rotation_id} is rolled back"
        return CommandReport(
            outcome=CommandOutcome.FAILED if problems else CommandOutcome.DONE,
            summary=f"{summary}, but for what is named below" if problems else f"{summary}; everything can be read",
            next_commands=("verify", "status") if problems else (),
            rotation=await session.administration.get_progress(rotation.rotation_id),
            verification=found,
            problems=problems,
        )


async def _build_report(
    session: CommandSession,
    steps: RotationSteps,
    rotation: RotationProgress,
    file: Path,
    backup_summary: BackupSummary,
) -> CommandReport:
    await steps.reload()
    found, problems = await steps.verify(file)
    latest = await session.administration.get_progress(rotation.rotation_id) or rotation
    failed = latest.state is not RotationState.DONE or bool(problems)
    summary = f"rotation {latest.rotation_id}: {describe_done(latest)} done"
    return CommandReport(
        outcome=CommandOutcome.FAILED if failed else CommandOutcome.DONE,
        summary=f"{summary}, and what is named below is not" if failed else f"{summary}; everything can be read",
        next_commands=("resume", "rollback") if failed else (),
        rotation=latest,
        backup=BackupReport(file=str(file), **backup_summary.model_dump()),
        verification=found,
        problems=_deduplicate_problems((*latest.problems, *problems)),
    )


@contextmanager
def _add_next_commands(*next_commands: str) -> Iterator[None]:
    """What to type next if something fails in the body."""
    try:
        yield
    except RefusedError as error:  # somebody else has the lease, say
        raise RotatorError(str(error), "status", *next_commands) from None
    except (AdministrationError, BackupError) as error:
        raise RotatorError(str(error), *next_commands) from None


def _deduplicate_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The last problem of each id."""
    return tuple({problem.id: problem for problem in problems}.values())


async def restore_backup(session: CommandSession, name: str) -> CommandReport:
    """Puts back data keys that are damaged or gone, from the backup `name`, or from `latest`.

    Raises:
        RotatorError: a rotation is not finished, or nobody answers in the middle.
        BackupError: the backup cannot be read, all of it; nothing was changed.
        AdministrationError: another runner has the lease.
    """
    async with session.hold_lease() as lease:
        latest = await session.administration.get_progress()
        refuse_unfinished(latest)
        usage, backups = await session.administration.count_key_usage(), latest.backups if latest else ()
        file = await asyncio.to_thread(session.backups.find, name, usage.keyring, backups)
        summary = await read_whole_backup(file, session.wrapping)
        changed, left_out = 0, list[Problem]()
        async for rows in read_pages(file, session.wrapping, SummaryBuilder()):
            try:
                changed += await session.administration.restore(rows, lease.token)
            except (RefusedError, UnreachableError) as error:
                raise RotatorError(str(error), "status", f"restore {name}") from None
            except AdministrationError as error:  # of some rows; the others are back
                left_out.append(Problem(id=f"from {rows[0].id} on", error=str(error)))
        await session.administration.reload_instances()
        found = await verify_with_retries(session, session.settings.verify_mode)
        problems = (*left_out, *find_own_problems(found, session.settings.driver))
        what = f"{format_count(changed, 'data key')} as in the backup again" if changed else "all was as in the backup"
        if left_out:  # of a page with one that is left out it is not known how many were changed
            sentence = "what can be put back is as in the backup; what is named below is not"
        else:
            sentence = f"{what}; {'what is named below cannot be read' if problems else 'everything can be read'}"
        return CommandReport(
            outcome=CommandOutcome.FAILED if problems else CommandOutcome.DONE,
            summary=sentence,
            next_commands=("verify", "status") if problems else (),
            backup=BackupReport(file=str(file), **summary.model_dump()),
            verification=found,
            problems=problems,
        )
