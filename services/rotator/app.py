"""From a command line to a report: opens the session, runs the command, and shows its progress and its result.

A report goes to standard output, to the folder of reports, and to GitHub's summary of the job if there is one.
"""

import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.rotator.backups import BackupError
from services.rotator.config import RotatorSettings
from services.rotator.report import (
    CommandOutcome,
    CommandReport,
    ProgressReporter,
    RotatorError,
    StepProgress,
    StepResult,
    format_count,
    format_markdown,
)
from services.rotator.session import CommandSession, open_session
from services.rotator.textfile import write_metrics
from shared.keyring.administration import AdministrationError
from shared.keyring.external.administration import ExternalAdministration
from shared.process import logs

_LINE_INTERVAL: Final = 5.0
"""Seconds between two lines of progress, at least."""


class LineReporter:
    """One line a step, and one now and then in between, on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, float("-inf")

    def report_step(self, name: str, detail: str = "") -> None:
        click.echo(f"{name}: {detail}" if detail else f"{name} …", err=True)

    def report_progress(self, progress: StepProgress) -> None:
        if self._clock() >= self._next or progress.done == progress.total:
            click.echo(_format_count(progress), err=True)
            self._next = self._clock() + _LINE_INTERVAL


class BarReporter:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def report_step(self, name: str, detail: str = "") -> None:
        self._bar.console.print(f"{name}: {detail}" if detail else f"{name} …", markup=False, highlight=False)

    def report_progress(self, progress: StepProgress) -> None:
        """The bar and its time left are of all steps."""
        counted, calls, of = _format_count(progress), progress.calls, progress.total_calls
        if self._task is None:  # what an earlier runner did has taken none of our time
            self._task = self._bar.add_task(counted, completed=calls, total=of)
        self._bar.update(self._task, description=counted, completed=calls, total=of)


def _format_count(progress: StepProgress) -> str:
    return f"{progress.step}: {progress.done} of {format_count(progress.total, progress.unit)}"


@contextmanager
def open_progress() -> Iterator[ProgressReporter]:
    """A bar with counts and the time left on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineReporter()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield BarReporter(bar)


_COMMANDS_WITH_REPORT: Final = {"run", "resume", "rollback", "restore", "retire", "destroy"}
"""The commands whose report stays in the folder of the state."""

SessionCommand = Callable[[CommandSession], Awaitable[CommandReport]]


def run_and_report(
    command: str,
    settings: RotatorSettings,
    config: str,
    run: SessionCommand,
    environ: Mapping[str, str],
    *,
    as_json: bool,
) -> CommandOutcome:
    """Does `run` and shows its report; `config` is how the file of the settings was named."""
    logs.configure("rotator", line_format="logfmt")
    with open_progress() as report_progress:
        report = asyncio.run(run_to_report(command, settings, run, report_progress))
    text = format_markdown(report, config)
    if as_json:
        click.echo(report.model_dump_json(indent=2, exclude_none=True))
    else:
        print_report(text)
    if command in _COMMANDS_WITH_REPORT:
        folder = settings.state_dir / "reports"
        _append_to_file(
            folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{command}.json", report.model_dump_json(indent=2) + "\n"
        )
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        _append_to_file(Path(summary), text)
    return report.outcome


def print_report(text: str) -> None:
    """Markdown as it is; on a terminal without its marks, but each command on one line, to be copied."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.markdown import Markdown  # noqa: PLC0415  # 0.1 s that no pipe needs

    report, next_, commands = text.partition("\nNext:\n")
    Console().print(Markdown(report, hyperlinks=False))
    click.echo(f"{next_}{commands}", nl=False)


def _append_to_file(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        click.echo(f"{file}: the report cannot be written: {error.strerror}", err=True)


async def run_to_report(
    command: str, settings: RotatorSettings, run: SessionCommand, progress: ProgressReporter
) -> CommandReport:
    """The report of `run`, also of an error that it raises."""
    steps: list[StepResult] = []
    running = asyncio.ensure_future(_run_in_session(settings, run, progress, steps))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        report = await running
    except asyncio.CancelledError:
        stopped = _build_failure_report("it was stopped by a signal; what was done stays", "status")
        report = stopped.model_copy(update={"outcome": CommandOutcome.STOPPED})
    except RotatorError as error:
        report = _build_failure_report(error.message, *error.next_commands)
    except (AdministrationError, BackupError) as error:
        report = _build_failure_report(str(error), "status")
    except Exception as error:  # noqa: BLE001  # a defect, or a row that another program got wrong
        # Without its text, which may contain an unexpected value.
        at = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"it met what it does not expect, {type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"
        report = _build_failure_report(f"{cause}; what was done stays", "status", "verify")
    return report.model_copy(update={"command": report.command or command, "steps": tuple(steps)})


def _build_failure_report(error: str, *next_commands: str) -> CommandReport:
    return CommandReport(outcome=CommandOutcome.FAILED, summary=error, next_commands=next_commands)


async def _run_in_session(
    settings: RotatorSettings, run: SessionCommand, progress: ProgressReporter, steps: list[StepResult]
) -> CommandReport:
    async with open_session(settings, progress, steps, time.time) as session:
        try:
            return await run(session)
        finally:
            await _write_metrics(session)


async def _write_metrics(session: CommandSession) -> None:
    """Without the file the command has done what it did."""
    file, administration = session.settings.metrics_file, session.administration
    if file and isinstance(administration, ExternalAdministration):
        try:
            await write_metrics(file, administration)
        except OSError as error:
            click.echo(f"{file}: the metrics cannot be written: {error.strerror}", err=True)
        except AdministrationError as error:
            click.echo(f"{file}: the metrics are as before: {error}", err=True)
