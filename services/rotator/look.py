"""The commands that only look: what would be done, what goes on, what needs which version, whether all can be read."""

import asyncio

from services.rotator import backups, others
from services.rotator.model import Amount
from services.rotator.plan import not_finished, plan, unfinished, ways_on
from services.rotator.report import KeptBackup, Outcome, Report
from services.rotator.session import Session
from services.rotator.target import enabled_primary
from services.rotator.verify import failures, verified
from shared.keyring.administration import RotationType


async def plans(session: Session, types: tuple[RotationType, ...], command: str = "plan") -> Report:
    """What a run of each of these types would do. Raises RotatorError, AdministrationError."""
    settings, administration = session.settings, session.administration
    primary = await enabled_primary(session.kms, settings.kms_timeout, command)
    census, latest = await administration.census(), await administration.progress()
    wanted = tuple(
        plan(
            type_,
            census,
            key=settings.kms.key,
            primary=primary,
            min_age=settings.new_dek_min_age,
        )
        for type_ in types
    )
    tried = [await administration.dry_run(each.type, primary) for each in wanted if each.data_keys]
    due = [f"run --type {each.type}" for each in wanted if each.data_keys]
    then = tuple(due)
    sentence = "nothing was changed"
    if latest is not None and unfinished(latest):
        sentence, then = not_finished(latest), ways_on(latest)
    return Report(
        command=command,
        outcome=Outcome.DONE if due else Outcome.NOTHING_TO_DO,
        sentence=sentence,
        then=then,
        plans=wanted,
        others=await others.count(session),
        problems=tuple(problem for progress in tried for problem in progress.problems),
    )


async def status(session: Session) -> Report:
    """The latest rotation. Raises AdministrationError."""
    latest = await session.administration.progress()
    if latest is None:
        return Report(command="status", outcome=Outcome.DONE, sentence="there was no rotation yet", then=("plan",))
    open_ = unfinished(latest)
    return Report(
        command="status",
        outcome=Outcome.DONE,
        sentence=not_finished(latest) if open_ else f"rotation {latest.rotation_id} is {latest.state}",
        then=ways_on(latest) if open_ else (),
        rotation=latest,
        problems=latest.problems,
    )


async def census(session: Session) -> Report:
    """Which data keys and how many records need which version, here and elsewhere. Raises AdministrationError."""
    counted, elsewhere = await session.administration.census(), await others.count(session)
    keys, records = (sum(getattr(each, of) for each in counted.versions) for of in ("data_keys", "records"))
    sentence = f"{keys} data keys, {records} records"
    if session.settings.other_keyrings is None:
        sentence += "; which other keyrings this KMS key wraps is not known: set `other_keyrings`"
    known = [("", counted), *((f" in {each.keyring}", each.census) for each in elsewhere if each.census)]
    for where, its in known:
        if its.may_need_any:
            sentence += f"; {its.may_need_any}{where} may need any version"
    silent = [each.keyring for each in elsewhere if each.census is None]
    if silent:
        sentence += f"; what {', '.join(silent)} needs is not known"
    return Report(
        command="census",
        outcome=Outcome.FAILED if silent else Outcome.DONE,
        sentence=sentence,
        then=("census",) if silent else (),
        census=counted,
        others=elsewhere,
    )


async def verify(session: Session, *, full: bool) -> Report:
    """Whether everything can be read; `full` reads every record. Raises AdministrationError."""
    total = sum(each.data_keys for each in (await session.administration.census()).versions)
    found = await verified(
        session,
        "full" if full else session.settings.verify_mode,
        lambda done: session.tell.progress(Amount("verify", done, total, done, max(done, total))),
    )
    wrong = failures(found)
    return Report(
        command="verify",
        outcome=Outcome.FAILED if wrong else Outcome.DONE,
        sentence=f"{len(wrong)} cannot be read; they are named below" if wrong else "everything can be read",
        then=("status", "verify") if wrong else (),
        verification=found,
        problems=found.problems,
    )


async def restore_check(session: Session, name: str) -> Report:
    """Whether a backup can be restored. Raises BackupError, AdministrationError."""
    timeout = session.settings.kms_timeout
    latest = await session.administration.progress()
    file = await asyncio.to_thread(session.backups.named, name, latest.steps if latest else ())
    summary = await backups.check(file, session.kms, timeout=timeout)
    wrong = [
        *await backups.differences(file, session.administration, session.kms, timeout=timeout),
        *await backups.unwrapped(file, session.kms, timeout=timeout),
    ]
    return Report(
        command="restore-check",
        outcome=Outcome.FAILED if wrong else Outcome.DONE,
        sentence="the backup can be read, and differs as named below" if wrong else "the backup can be restored",
        then=("verify", "status") if wrong else (),
        backup=KeptBackup(file=str(file), **summary.model_dump()),
        problems=tuple(wrong),
    )
