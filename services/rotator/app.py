"""From a command line to a report: opens the session, does the work, and shows what it came to.

A report goes to standard output, to the folder of reports, and to GitHub's summary of the job where there is one.
"""

import asyncio
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from services.rotator.backup import BackupError
from services.rotator.config import Settings
from services.rotator.model import RotatorError, Tell, Took
from services.rotator.progress import telling
from services.rotator.report import Outcome, Report, markdown
from services.rotator.session import Session, opened
from shared.keyring.administration import AdministrationError, RefusedError

_KEPT: Final = {"run", "resume", "rollback", "restore", "retire", "destroy"}
"""The commands whose report stays in the folder of the state."""

Work = Callable[[Session], Awaitable[Report]]


def done(
    command: str, settings: Settings, config: str, work: Work, environ: Mapping[str, str], *, as_json: bool
) -> int:
    """Does `work` and shows its report; gives the exit code.

    Args:
        command: its name.
        settings: of the rotator.
        config: how their file was named.
        work: gives the report.
        environ: of the process.
        as_json: whether a program reads it.
    """
    with telling() as tell:
        report = asyncio.run(reported(command, settings, work, tell))
    text = markdown(report, config)
    click.echo(report.model_dump_json(indent=2, exclude_none=True) if as_json else text, nl=not text.endswith("\n"))
    if command in _KEPT:
        folder = settings.state_dir / "reports"
        _append(
            folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{command}.json", report.model_dump_json(indent=2) + "\n"
        )
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), text)
    return 1 if report.outcome is Outcome.FAILED else 0


def _append(file: Path, text: str) -> None:
    """Where that is impossible it is said: what was done is done, and is on standard output."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        click.echo(f"{file}: the report cannot be written: {error.strerror}", err=True)


async def reported(command: str, settings: Settings, work: Work, tell: Tell) -> Report:
    """The report of `work`, whatever it raises; arguments as of `done`."""
    took: list[Took] = []
    working = asyncio.ensure_future(_worked(settings, work, tell, took))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        report = await working
    except asyncio.CancelledError:
        report = _failed(command, "it was stopped by a signal; what was done stays", "status")
    except RotatorError as error:
        report = _failed(command, error.why, *error.then)
    except RefusedError as error:
        report = _failed(command, str(error), "status")
    except (AdministrationError, BackupError) as error:
        report = _failed(command, str(error), "status")
    except Exception as error:  # noqa: BLE001  # a defect, or a row that another program got wrong
        # Without its words: those of a value that was not expected may hold the value.
        at = traceback.extract_tb(error.__traceback__)[-1]
        why = f"it met what it does not expect, {type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"
        report = _failed(command, f"{why}; what was done stays", "status", "verify")
    return report.model_copy(update={"steps": tuple(took)})


def _failed(command: str, why: str, *then: str) -> Report:
    return Report(command=command, outcome=Outcome.FAILED, sentence=why, then=then)


async def _worked(settings: Settings, work: Work, tell: Tell, took: list[Took]) -> Report:
    async with opened(settings, tell, took, time.time) as session:
        return await work(session)
