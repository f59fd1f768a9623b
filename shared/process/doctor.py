"""The command `doctor`: tries everything that a configuration names, and prints a line for each check.

A service lists its checks in a module `doctor` of its own; what they use is closed when its context ends. The files
that the settings name are checked for every service alike. No check changes or sends anything.

    main.add_command(create_doctor_command(RelaySettings, open_checks, "keypulse-relay"))
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import click
import structlog
from pydantic import BaseModel

from shared.check import Check, CheckError, CheckOutcome, CheckResult, format_line, run_check, skip_check
from shared.config.file_checks import FileCheck, check_value, iterate_file_checks
from shared.config.settings import CommandSettings
from shared.process.command_line import load_settings_or_exit, replace_unencodable_output

C = TypeVar("C", bound=CommandSettings)
OpenChecks = Callable[[C], AbstractAsyncContextManager[Iterable[Check]]]
"""Opens the checks of a service's settings. A check is named by the key that it is about, and what it tries."""

CHECK_TIMEOUT_SECONDS: Final = 15.0
"""How long one check may take."""
NO_ANSWER_HINT: Final = "check the address, then DNS, firewall and proxy on the way"
"""Of a check that took longer."""


def create_doctor_command(model: type[C], open_checks: OpenChecks[C], program: str) -> click.Command:
    """Create the command `doctor` of a program.

    Args:
        model: the settings.
        open_checks: the checks of the settings, beside those of the files that they name.
        program: its name. Its group may put the path of `--config` into the context's `obj`.
    """
    file = f"{model.service_name}.yml"
    examples = f"\b\nExamples:\n  {program} doctor --config {file}\n  {program} doctor --config {file} --json"

    @click.command("doctor", short_help="Try everything that the configuration names.", epilog=examples)
    @click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
    @click.option("--config", type=click.Path(path_type=Path), help="The YAML file.")
    @click.pass_obj
    def doctor(config_of_group: Path | None, config: Path | None, *, as_json: bool) -> None:
        """Try everything that the configuration names: files, servers, credentials and permissions.

        Changes nothing and sends nothing. Prints a line for each check, and what to do where one fails; exits with 1
        then.
        """
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        settings = load_settings_or_exit(model, config or config_of_group)
        results = asyncio.run(run_doctor(settings, open_checks))
        _print_results(results, as_json=as_json)
        sys.exit(0 if all(result.is_ok for result in results) else 1)

    return doctor


async def run_doctor(settings: C, open_checks: OpenChecks[C]) -> list[CheckResult]:
    """Run all checks of the settings: of the files that they name, and of the service."""
    async with open_checks(settings) as checks:
        every = [*list_file_checks(settings), *checks]
        return await run_checks_concurrently(every, timeout=CHECK_TIMEOUT_SECONDS)


async def run_checks_concurrently(
    checks: Iterable[Check], *, timeout: float, max_concurrent: int = 16
) -> list[CheckResult]:
    """Run every check as soon as the one that it depends on has passed, or is usable; no defect stops the others.

    Args:
        checks: in the order of their lines; no two have the same name.
        timeout: seconds that one check may take.
        max_concurrent: how many run at once.
    """
    slots = asyncio.Semaphore(max_concurrent)
    tasks: dict[str, asyncio.Task[CheckResult]] = {}

    async def run(check: Check) -> CheckResult:
        for name in check.after:
            await tasks[name]
        if check.depends_on is not None and (await tasks[check.depends_on]).stops_others:
            return skip_check(check)
        async with slots:
            return await _run_bounded(check, timeout)

    async with asyncio.TaskGroup() as group:
        for check in checks:
            tasks[check.name] = group.create_task(run(check))
    return [task.result() for task in tasks.values()]


async def _run_bounded(check: Check, timeout: float) -> CheckResult:
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            return await run_check(check)
    except TimeoutError:
        error, hint = f"no answer within {timeout:g} s", NO_ANSWER_HINT
    except Exception as defect:  # noqa: BLE001  # without its text, which may hold a secret
        error, hint = f"a defect of keypulse: {type(defect).__name__}", "report it, with the version and this line"
    return CheckResult(check.name, CheckOutcome.FAILED, error, hint, time.monotonic() - began)


def list_file_checks(settings: BaseModel, path: str = "") -> Iterator[Check]:
    """The checks of the files that settings name; `path` is that of their keys, such as `channels.slack.`."""
    for key, check, value in iterate_file_checks(settings, path):
        if isinstance(value, BaseModel) and value == type(value)():
            continue  # it names no file
        yield Check(key, partial(asyncio.to_thread, _open_files, key, check, value))


def _open_files(key: str, check: FileCheck, value: object) -> str:
    """Raise CheckError with the first problem."""
    for problem in check_value(key, check, value):
        is_usable = problem.startup_policy is None
        raise CheckError(problem.error, problem.hint or "correct the file, or the key", is_usable=is_usable)
    return "its files open" if isinstance(value, BaseModel) else str(value)


def _print_results(results: Sequence[CheckResult], *, as_json: bool) -> None:
    skipped = sum(result.outcome is CheckOutcome.SKIPPED for result in results)
    failed = sum(not result.is_ok for result in results) - skipped
    if as_json:
        rows = [{"name": each.name, "ok": each.is_ok, "detail": each.detail, "hint": each.hint} for each in results]
        click.echo(json.dumps({"checks": rows, "ok": not failed}, indent=2))
        return
    replace_unencodable_output()
    for result in results:
        click.echo(format_line(result, verbose=True))
    others = f", {skipped} skipped" if skipped else ""
    click.echo(f"{failed} of {len(results)} checks failed{others}" if failed else f"all {len(results)} checks passed")
