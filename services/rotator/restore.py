"""Puts a backup back, where the journal cannot help: data keys that were damaged, or are gone."""

import asyncio

from services.rotator import backups as backup_file
from services.rotator import backups as folder
from services.rotator.model import RotatorError
from services.rotator.plan import refuse_unfinished
from services.rotator.report import BackupReport, CommandOutcome, CommandReport
from services.rotator.session import CommandSession
from services.rotator.verification import find_own_problems, verify_with_retries
from shared.keyring.administration import AdministrationError, Lease, Problem, RefusedError, UnreachableError


async def restore_backup(session: CommandSession, name: str) -> CommandReport:
    """Each data key of the backup gets the wrapped form that it has there; one that is gone comes back as retired.

    Args:
        session: of the command.
        name: of the backup, or `latest`.

    Raises:
        RotatorError: a rotation is not finished, or nobody answers in the middle.
        BackupError: the backup cannot be read, all of it; nothing was changed.
        AdministrationError: the lease is another's.
    """
    return await session.run_with_lease(lambda lease: _restore_with_lease(session, lease, name))


async def _restore_with_lease(session: CommandSession, lease: Lease, name: str) -> CommandReport:
    latest = await session.administration.get_progress()
    refuse_unfinished(latest)
    timeout = session.settings.kms_timeout
    file = await asyncio.to_thread(session.backups.find, name, latest.backups if latest else ())
    summary = await folder.read_whole_backup(file, session.kms, timeout=timeout)
    changed, left_out = 0, list[Problem]()
    async for rows in backup_file.read_pages(file, session.kms, backup_file.SummaryBuilder(), timeout=timeout):
        try:
            changed += await session.administration.restore(rows, lease.token)
        except (RefusedError, UnreachableError) as error:
            raise RotatorError(str(error), "status", f"restore {name}") from None
        except AdministrationError as error:  # of some rows; the others are back
            left_out.append(Problem(id=f"from {rows[0].id} on", error=str(error)))
    await session.administration.reload_instances()
    found = await verify_with_retries(session, session.settings.verify_mode)
    problems = (*left_out, *find_own_problems(found))
    what = f"{changed} data keys are as in the backup again" if changed else "all was as in the backup"
    if left_out:  # of a page with one that is left out it is not known how many were changed
        sentence = "what can be put back is as in the backup; what is named below is not"
    else:
        sentence = f"{what}; {'what is named below cannot be read' if problems else 'everything can be read'}"
    return CommandReport(
        command="restore",
        outcome=CommandOutcome.FAILED if problems else CommandOutcome.DONE,
        summary=sentence,
        next_commands=("verify", "status") if problems else (),
        backup=BackupReport(file=str(file), **summary.model_dump()),
        verification=found,
        problems=problems,
    )
