"""The command `doctor`: tries everything that a configuration names, and prints a line for each check.

A service lists its checks in a module `doctor` of its own; what they use is closed when its context ends. The files
that the settings name are checked for every service alike, and of every server what its start refuses, by the functions
of the start. No check changes or sends anything.

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

from shared.check import (
    Check,
    CheckAdvice,
    CheckError,
    CheckOutcome,
    CheckResult,
    format_line,
    run_check,
    skip_check,
)
from shared.config.file_checks import FileCheck, FileProblem, check_value, iterate_file_checks
from shared.config.server_settings import ServerSettings
from shared.config.settings import CommandSettings
from shared.http.healthcheck import check_server
from shared.http.server import StartError, bind_socket
from shared.process.command_line import (
    add_web_config_option,
    exit_on_configuration_error,
    load_settings_or_exit,
    replace_unencodable_output,
)
from shared.process.server import ServerRunner, read_configuration

C = TypeVar("C", bound=CommandSettings)
S = TypeVar("S", bound=ServerSettings)
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
        program: its name. Its group may have the options `--config` and `--web.config.file`, too.
    """
    file = f"{model.service_name}.yml"
    examples = f"\b\nExamples:\n  {program} doctor --config {file}\n  {program} doctor --config {file} --json"

    @click.command("doctor", short_help="Try everything that the configuration names.", epilog=examples)
    @click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
    @click.option("--config", type=click.Path(path_type=Path), help="The YAML file.")
    @click.pass_context
    def doctor(context: click.Context, config: Path | None, web_config: Path | None = None, *, as_json: bool) -> None:
        """Try everything that the configuration names: files, servers, credentials and permissions.

        Changes nothing and sends nothing. Prints a line for each check, and what to do where one fails; exits with 1
        then. A line that begins with `-` is an advice, or says why nothing was tried.
        """
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        of_group = context.find_root().params
        config, web_config = config or of_group.get("config"), web_config or of_group.get("web_config")
        settings, start_checks = _read_settings_or_exit(model, config, web_config)
        results = asyncio.run(run_doctor(settings, open_checks, start_checks))
        _print_results(results, as_json=as_json)
        sys.exit(0 if all(result.is_ok for result in results) else 1)

    return add_web_config_option(doctor) if issubclass(model, ServerSettings) else doctor


def _read_settings_or_exit(model: type[C], config: Path | None, web_config: Path | None) -> tuple[C, Iterable[Check]]:
    """Return the settings, and the checks of a server's start; exit with 2 where no start gets past the files."""
    if not issubclass(model, ServerSettings):
        return load_settings_or_exit(model, config), ()
    runner = exit_on_configuration_error(lambda: read_configuration(model, config, web_config))
    return runner.settings, list_start_checks(runner)


def list_start_checks(runner: ServerRunner[S]) -> Iterator[Check]:
    """What a server's start refuses or warns of, beside the files that its settings name."""
    if runner.web_config_file:
        yield from list_file_checks(runner.web_config_file.get_state().config)
    for _, problem in runner.find_warnings():
        yield Check(problem.key, partial(_advise, problem))
    yield Check("listen", partial(asyncio.to_thread, _check_address, runner))


async def _advise(problem: FileProblem) -> str:
    raise CheckAdvice(problem.error, problem.hint)


def _check_address(runner: ServerRunner[S]) -> str:
    """Raise CheckError where the start could not listen, and it is no server of keypulse that already does."""
    address, web = runner.settings.listen, runner.web_config_file
    try:
        bind_socket(address).close()
    except StartError as error:
        if check_server(address, web.get_state().config.tls_server_config if web else None):
            raise CheckError(error.error, error.hint) from None
        return f"a server of keypulse listens on {address}, and is healthy"
    return f"{address} is free"


async def run_doctor(settings: C, open_checks: OpenChecks[C], start_checks: Iterable[Check] = ()) -> list[CheckResult]:
    """Run all checks of the settings: of the files that they name, of the start, and of the service.

    A check of the service replaces the warning that the start has for the same key.
    """
    async with open_checks(settings) as checks:
        every = {check.name: check for check in (*list_file_checks(settings), *start_checks, *checks)}
        return await run_checks_concurrently(every.values(), timeout=CHECK_TIMEOUT_SECONDS)


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
    end = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    advised = [result.name for result in results if result.outcome is CheckOutcome.ADVICE]
    advice = f", {len(advised)} with advice: {', '.join(advised)}" if advised else ""
    click.echo(f"{end}{f', {skipped} skipped' if skipped else ''}{advice}")
