"""The part of a command line that all servers share: their files, what they do instead of serving, the log, exit codes.

0 done, 1 failed, 2 wrong usage or configuration with one line for each mistake.
"""

import asyncio
import json
import resource
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_args

import click
import structlog

from shared import VERSION
from shared.config.errors import ConfigurationError
from shared.config.server_settings import ServerSettings
from shared.config.settings import CommandSettings, load_settings
from shared.http.healthcheck import check_configured_server, exit_with_result
from shared.http.server import StartError
from shared.process import logs, memory
from shared.process.hot_reload import block_sighup
from shared.process.runner import ServerRunner, prepare_server
from shared.process.shutdown import run_until_stop_signal

C = TypeVar("C", bound=CommandSettings)
S = TypeVar("S", bound=ServerSettings)
G = TypeVar("G")
T = TypeVar("T")
Command = Callable[..., Any]
Loop = Callable[[], asyncio.AbstractEventLoop]

log = structlog.get_logger(__name__)


class ServerOptions(TypedDict):
    """What `add_server_options` hands to a command, and the command to `run_server`."""

    config: Path | None
    web_config: Path | None
    log_level: logs.Level
    log_format: logs.Format
    check: bool
    healthcheck: bool
    print_schema: bool


def add_server_options(command: Command) -> Command:
    """Adds the options of every server to a click command, and `--version`."""
    for option in (
        click.option(
            "--log.format",
            "log_format",
            type=click.Choice(get_args(logs.Format)),
            default="json",
            help="How a line of the log is written.",
        ),
        click.option(
            "--log.level",
            "log_level",
            type=click.Choice(get_args(logs.Level)),
            default="info",
            help="The lowest level that is logged.",
        ),
        click.option(
            "--healthcheck", is_flag=True, help="Ask the running server whether it is healthy; exit with 0 or 1."
        ),
        click.option("--print-schema", is_flag=True, help="Print the configuration's JSON Schema and exit."),
        click.option(
            "--check",
            is_flag=True,
            help="Validate the configuration, open what it names, and exit.",
        ),
        click.option(
            "--web.config.file",
            "web_config",
            type=click.Path(path_type=Path),
            help="TLS and users, as exporter-toolkit's web.yml has them.",
        ),
        click.option("--config", type=click.Path(path_type=Path), help="The YAML file; without it, defaults."),
        click.version_option(VERSION, prog_name="keypulse"),
    ):
        command = option(command)
    return command


def parse_option_or_exit(option: str, parse: Callable[[G], T], value: G) -> T:
    """What `parse` makes of an option's value; where it raises ValueError, one line on standard error, then exit 2."""
    try:
        return parse(value)
    except ValueError as error:
        click.echo(f"{option}: {error}, got {str(value)!r}", err=True)
        sys.exit(2)


def load_settings_or_exit(model: type[C], config: Path | None) -> C:
    """The settings; on mistakes, one line for each on standard error, then exit 2."""
    return _exit_on_configuration_error(lambda: load_settings(model, config))


def run_server(
    model: type[S],
    serve: Callable[[ServerRunner[S]], Awaitable[None]],
    options: ServerOptions,
    loop: Loop | None = None,
) -> None:
    """What a server's command does when no subcommand is given.

    Args:
        model: the server's settings.
        serve: runs the server until it is stopped.
        options: what the command was given.
        loop: makes the event loop; None takes asyncio's own.
    """
    if options["print_schema"]:
        click.echo(json.dumps(model.model_json_schema(), indent=2))
        return
    config, web_config = options["config"], options["web_config"]
    if options["healthcheck"]:
        exit_with_result(check_configured_server(model, config, web_config))
    if not options["check"]:
        block_sighup()
    runner = _exit_on_configuration_error(lambda: prepare_server(model, config, web_config, is_check=options["check"]))
    warnings = [(config, key, warning) for key, warning in runner.settings.find_warnings()]
    warnings += [(file, problem.key, problem.message) for file, problem in runner.warnings]
    if options["check"]:
        for file, key, warning in warnings:
            click.echo(f"{file or 'environment'}: {key}: {warning}", err=True)
        click.echo("the configuration is valid")
        return
    logs.configure(model.service_name, options["log_level"], options["log_format"])
    memory.limit_retained_memory()
    for _, key, warning in warnings:
        log.warning("configuration warning", key=key, error=warning)
    _raise_open_file_limit()
    run_until_done_or_exit(run_until_stop_signal(serve(runner)), loop)


def _raise_open_file_limit() -> None:
    """A thousand keys are a thousand connections; systemd lets a process open 1,024 files unless it asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _exit_on_configuration_error(read: Callable[[], T]) -> T:
    try:
        return read()
    except ConfigurationError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(2)


def run_until_done_or_exit(work: Awaitable[None], loop: Loop | None = None) -> None:
    """Runs `work`; a StartError becomes one sentence on standard error and exit 1."""

    async def until_done() -> None:
        await work

    try:
        with asyncio.Runner(loop_factory=loop) as loop_runner:
            loop_runner.run(until_done())
    except StartError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
