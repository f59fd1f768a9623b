"""The orders of steps, each under the lease: `run` begins a rotation, `resume` finishes one, `rollback` undoes one.

target → smoke → backup → encrypt → rotate → reload → verify

Until `rotate` nothing is changed, and a failure leaves nothing to be finished. `verify` comes last: a rotation without
it is not finished, whatever state the keyring gives it.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.rotator.backup import BackupError, Summary
from services.rotator.model import RotatorError
from services.rotator.plan import may_resume, not_finished, plan, refuse_unfinished, unfinished, ways_on
from services.rotator.report import KeptBackup, Outcome, Report
from services.rotator.session import Session
from services.rotator.steps import Steps
from shared.keyring.administration import (
    AdministrationError,
    Lease,
    Problem,
    Progress,
    RefusedError,
    RotationState,
    RotationType,
)


async def run(session: Session, type_: RotationType) -> Report:
    """Rotates, where there is something to do. Raises RotatorError, AdministrationError, BackupError."""
    return await session.holding(lambda lease: _run(session, lease, type_))


async def resume(session: Session) -> Report:
    """Finishes the rotation that was left in the middle. Raises RotatorError, AdministrationError, BackupError."""
    return await session.holding(lambda lease: _resume(session, lease))


async def rollback(session: Session) -> Report:
    """Undoes the latest rotation. Raises RotatorError, AdministrationError, BackupError."""
    return await session.holding(lambda lease: _rollback(session, lease))


async def _run(session: Session, lease: Lease, type_: RotationType) -> Report:
    latest = await session.administration.progress()
    refuse_unfinished(latest)
    again, now = f"run --type {type_}", session.database_now(lease)
    steps = Steps(session, lease.token, type_, f"{type_}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}", again)
    version = await steps.target()
    await steps.smoke()
    census, settings = await session.administration.census(), session.settings
    wanted = plan(
        type_,
        census,
        key=settings.kms.key,
        primary=version,
        min_age=settings.new_dek_min_age,
    )
    if not wanted.data_keys:
        if latest is None or not may_resume(latest):
            await steps.nothing()
        return Report(command="run", outcome=Outcome.NOTHING_TO_DO, sentence=wanted.sentence, plans=(wanted,))
    with _leads_to(again):
        file, summary = await steps.backup()
        await steps.encrypt(version)
    with _leads_to("resume", "rollback"):
        rotation = await steps.rotate(version)
        return await _finished("run", session, steps, rotation, file, summary)


async def _resume(session: Session, lease: Lease) -> Report:
    latest = await session.administration.progress()
    if latest is None or not may_resume(latest):
        why = f"rotation {latest.rotation_id} is {latest.state}" if latest else "there was no rotation"
        nothing = f"nothing to do: {why}"
        return Report(command="resume", outcome=Outcome.NOTHING_TO_DO, sentence=nothing, rotation=latest)
    if latest.rolling_back:
        raise RotatorError(not_finished(latest), *ways_on(latest))
    steps = Steps(session, lease.token, latest.type, latest.rotation_id, "resume")
    version = await steps.target()
    await steps.smoke()
    overtaken = latest.target_version not in {None, version}
    if overtaken and latest.state is RotationState.FAILED:  # what it could do is done, and a run does the rest
        return Report(
            command="resume",
            outcome=Outcome.NOTHING_TO_DO,
            sentence=f"nothing to do: rotation {latest.rotation_id} failed for version {latest.target_version} of the "
            f"KMS key, whose primary version is {version} by now; another run tries what is left",
            then=(f"run --type {latest.type}",),
            rotation=latest,
            problems=latest.problems,
        )
    with _leads_to("resume", "rollback"):
        file, summary = await steps.backup(latest.steps)
        if latest.state is not RotationState.DONE:
            await steps.encrypt(version)
            latest = await steps.rotate(version, retarget=overtaken)
        return await _finished("resume", session, steps, latest, file, summary)


async def _finished(
    command: str, session: Session, steps: Steps, rotation: Progress, file: Path, summary: Summary
) -> Report:
    await steps.reload()
    found, wrong = await steps.verify(file)
    latest = await session.administration.progress(rotation.rotation_id) or rotation
    failed = latest.state is not RotationState.DONE or bool(wrong)
    what = f"rotation {latest.rotation_id}: {latest.done} of {latest.total} data keys are done"
    return Report(
        command=command,
        outcome=Outcome.FAILED if failed else Outcome.DONE,
        sentence=f"{what}, and what is named below is not" if failed else f"{what}; everything can be read",
        then=("resume", "rollback") if failed else (),
        rotation=latest,
        backup=KeptBackup(file=str(file), **summary.model_dump()),
        verification=found,
        problems=_distinct((*latest.problems, *wrong)),
    )


async def _rollback(session: Session, lease: Lease) -> Report:
    latest = await session.administration.progress()
    if latest is None or (latest.state is RotationState.ROLLED_BACK and not unfinished(latest)):
        why = f"rotation {latest.rotation_id} is rolled back" if latest else "there was no rotation"
        nothing = f"nothing to do: {why}"
        return Report(command="rollback", outcome=Outcome.NOTHING_TO_DO, sentence=nothing, rotation=latest)
    steps = Steps(session, lease.token, latest.type, latest.rotation_id, "rollback")
    with _leads_to("rollback"):
        rotation = await steps.rollback()
        await steps.reload()
        found, unreadable = await steps.verify()
    wrong = _distinct((*rotation.problems, *unreadable))
    what = f"rotation {rotation.rotation_id} is rolled back"
    return Report(
        command="rollback",
        outcome=Outcome.FAILED if wrong else Outcome.DONE,
        sentence=f"{what}, but for what is named below" if wrong else f"{what}; everything can be read",
        then=("verify", "status") if wrong else (),
        rotation=await session.administration.progress(rotation.rotation_id),
        verification=found,
        problems=wrong,
    )


@contextmanager
def _leads_to(*then: str) -> Iterator[None]:
    """Where something fails in it, this is what to type next."""
    try:
        yield
    except RefusedError as error:  # somebody else has the lease, say
        raise RotatorError(str(error), "status", *then) from None
    except (AdministrationError, BackupError) as error:
        raise RotatorError(str(error), *then) from None


def _distinct(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """One for each thing, what was said of it last."""
    return tuple({problem.id: problem for problem in problems}.values())
