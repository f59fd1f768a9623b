"""The part of a command line that all servers share: `--config`, `--check`, `--print-schema`, exit codes.

0 done, 1 failed, 2 wrong usage or configuration with one line for each mistake.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import structlog

from shared import VERSION, logs
from shared.mistakes import ConfigurationError
from shared.planned import ignored_keys
from shared.server import StartError
from shared.settings import ServerSettings, load
from shared.stop import stoppable

S = TypeVar("S", bound=ServerSettings)
G = TypeVar("G")
T = TypeVar("T")
Command = Callable[..., None]
Loop = Callable[[], asyncio.AbstractEventLoop]

log = structlog.get_logger(__name__)


def server_options(command: Command) -> Command:
    """Adds the options of every server to a click command, and `--version`."""
    for option in (
        click.option("--print-schema", is_flag=True, help="Print the configuration's JSON Schema and exit."),
        click.option("--check", is_flag=True, help="Validate the configuration and exit."),
        click.option("--config", type=click.Path(path_type=Path), help="The YAML file; without it, defaults."),
        click.version_option(VERSION, prog_name="keypulse"),
    ):
        command = option(command)
    return command


def option_or_exit(option: str, parse: Callable[[G], T], given: G) -> T:
    """What `parse` makes of an option's value; where it raises ValueError, one line on standard error, then exit 2."""
    try:
        return parse(given)
    except ValueError as error:
        click.echo(f"{option}: {error}, got {str(given)!r}", err=True)
        sys.exit(2)


def load_or_exit(model: type[S], config: Path | None) -> S:
    """The settings; on mistakes, one line for each on standard error, then exit 2."""
    try:
        return load(model, config)
    except ConfigurationError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(2)


def run_server(
    model: type[S],
    serve: Callable[[S], Awaitable[None]],
    *,
    config: Path | None,
    check: bool,
    print_schema: bool,
    loop: Loop | None = None,
) -> None:
    """What a server's command does when no subcommand is given.

    Args:
        model: the server's settings.
        serve: runs the server until it is stopped.
        config: the YAML file, or None.
        check: only validate.
        print_schema: only print the JSON Schema.
        loop: makes the event loop; None takes asyncio's own.
    """
    if print_schema:
        click.echo(json.dumps(model.model_json_schema(), indent=2))
        return
    settings = load_or_exit(model, config)
    ignored = list(ignored_keys(settings))
    if check:
        for key in ignored:
            click.echo(f"{config}: {key}: has no effect in version {VERSION}", err=True)
        click.echo("the configuration is valid")
        return
    logs.configure(model.service_name)
    for key in ignored:
        log.warning("this key has no effect in this version", key=key, version=VERSION)
    run_or_exit(stoppable(serve(settings)), loop)


def run_or_exit(work: Awaitable[None], loop: Loop | None = None) -> None:
    """Runs `work`; a StartError becomes one sentence on standard error and exit 1."""

    async def until_done() -> None:
        await work

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(until_done())
    except StartError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
