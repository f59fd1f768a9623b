"""What the command lines share: options of servers, --check, logs, exit codes.

0 done, 1 failed, 2 wrong usage or configuration with one line for each error.
"""

import asyncio
import io
import json
import resource
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar, get_args

import click
import yaml
from pydantic import BaseModel, ValidationError

from shared import VERSION
from shared.config.errors import ConfigurationError, format_errors
from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, CommandSettings, check_base_url, load_settings, parse_address
from shared.http.healthcheck import check_configured_server, exit_with_result
from shared.http.server import StartError
from shared.process import concurrency as memory
from shared.process import logs
from shared.process.server import ServerRunner, block_sighup, log_warnings, prepare_server, run_until_stop_signal

C = TypeVar("C", bound=CommandSettings)
S = TypeVar("S", bound=ServerSettings)
G = TypeVar("G")
T = TypeVar("T")
W = TypeVar("W", bound=Callable[..., Any])
Command = Callable[..., Any]
Loop = Callable[[], asyncio.AbstractEventLoop]


class ServerOptions(TypedDict):
    """The options of `add_server_options`, as the command passes them to `run_server`."""

    config: Path | None
    web_config: Path | None
    log_level: logs.Level
    log_format: logs.Format
    check: bool
    healthcheck: bool
    print_schema: bool


def add_server_options(command: Command) -> Command:
    """Add the options of every server to a click command, and `--version`."""
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
            "--healthcheck", is_flag=True, help="Check whether the running server is healthy; exit with 0 or 1."
        ),
        click.option("--print-schema", is_flag=True, help="Print the configuration's JSON Schema and exit."),
        click.option(
            "--check",
            is_flag=True,
            help="Validate the configuration, open what it names, and exit.",
        ),
        add_web_config_option,
        click.option("--config", type=click.Path(path_type=Path), help="The YAML file; without it, defaults."),
        click.version_option(VERSION, prog_name="keypulse"),
    ):
        command = option(command)
    return command


def add_web_config_option(command: W) -> W:
    """Add the option of the file with TLS and users."""
    help_ = "TLS and users, as exporter-toolkit's web.yml has them."
    return click.option("--web.config.file", "web_config", type=click.Path(path_type=Path), help=help_)(command)


def parse_listen_option_or_exit(option: str, value: str, *, allow_remote_insecure: bool) -> Address:
    """Return the address of a server that needs no credentials: loopback, unless the option allows others."""

    def parse(text: str) -> Address:
        address = parse_address(text)
        if not (address.is_loopback or allow_remote_insecure):
            raise ValueError(
                f"expected a loopback address such as 127.0.0.1:{address.port}, because the server needs no "
                "credentials, or --allow-remote-insecure"
            )
        return address

    return parse_option_or_exit(option, parse, value)


def replace_unencodable_output() -> None:
    """Print `?` instead of a character, such as ✓, that the terminal's encoding does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def parse_option_or_exit(option: str, parse: Callable[[G], T], value: G, *, is_secret: bool = False) -> T:
    """Return the parsed value of an option; on a ValueError, print one line to standard error and exit with 2.

    Without the value where it may be a secret.
    """
    try:
        return parse(value)
    except ValueError as error:
        click.echo(f"{option}: {error}" + ("" if is_secret else f", got {str(value)!r}"), err=True)
        sys.exit(2)


class ParsedOption(click.ParamType[T]):
    """The type of an option, or an argument, that `parse` reads, as in `parse_option_or_exit`.

    `--help` shows `name`, in capitals, for the value.
    """

    def __init__(self, parse: Callable[[Any], T], name: str = "text", *, is_secret: bool = False) -> None:
        self.name = name
        self._parse = parse
        self._is_secret = is_secret

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:  # noqa: ARG002
        """Called by click, for each value of an option that may be repeated."""
        assert param is not None  # noqa: S101  # it is, but for a prompt
        option = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name.strip("[].")
        return parse_option_or_exit(option, self._parse, value, is_secret=self._is_secret)


URL_WITH_USER: Final = ParsedOption(partial(check_base_url, allow_user=True), "url", is_secret=True)
"""The URL of a server, perhaps with a user and a password."""


def load_settings_or_exit(model: type[C], config: Path | None) -> C:
    """Return the settings; on errors, print one line for each to standard error and exit with 2."""
    return exit_on_configuration_error(lambda: load_settings(model, config))


def render_configuration(template: Path, **values: object) -> str:
    """A first configuration, built from options; `quote` in its template puts a text into YAML's double quotes."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  # the other commands do without it

    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(autoescape=False, undefined=StrictUndefined, **options)  # noqa: S701  # it is no HTML
    environment.filters["quote"] = partial(json.dumps, ensure_ascii=False)  # JSON's are YAML's, too
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def print_configuration_or_exit(model: type[BaseModel], text: str) -> None:
    """Print a first configuration, built from options; where these are wrong, a line for each error, exit 2."""
    try:
        model(**yaml.safe_load(text))
    except ValidationError as error:
        click.echo("\n".join(format_errors(model, "", Path("options"), error)), err=True)
        sys.exit(2)
    click.echo(text, nl=False)


def run_server(
    model: type[S],
    serve: Callable[[ServerRunner[S]], Awaitable[None]],
    options: ServerOptions,
    loop: Loop | None = None,
) -> None:
    """Run a server's command without a subcommand: serve until it is stopped, or what its options say instead.

    `loop` makes the event loop; None takes asyncio's own.
    """
    if options["print_schema"]:
        click.echo(json.dumps(model.model_json_schema(), indent=2))
        return
    config, web_config = options["config"], options["web_config"]
    if options["healthcheck"]:
        exit_with_result(check_configured_server(model, config, web_config))
    if not options["check"]:
        block_sighup()
    runner = exit_on_configuration_error(lambda: prepare_server(model, config, web_config, is_check=options["check"]))
    if options["check"]:
        for file, problem in runner.warnings:
            click.echo(f"{file or 'environment'}: {problem.key}: {problem.sentence}", err=True)
        click.echo("the configuration is valid")
        return
    logs.configure(model.service_name, options["log_level"], options["log_format"])
    memory.limit_retained_memory()
    log_warnings(problem for _, problem in runner.warnings)
    _raise_open_file_limit()
    run_until_done_or_exit(run_until_stop_signal(serve(runner)), loop)


def _raise_open_file_limit() -> None:
    """Allow one connection for each of thousands of keys; systemd's default is 1,024 open files."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def exit_on_configuration_error(read: Callable[[], T]) -> T:
    """Return what `read` returns; on a ConfigurationError, print its lines to standard error and exit with 2."""
    try:
        return read()
    except ConfigurationError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(2)


def run_until_done_or_exit(work: Awaitable[None], loop: Loop | None = None) -> None:
    """Run `work`; on a StartError, print its sentence to standard error and exit with 1."""

    async def until_done() -> None:
        await work

    try:
        with asyncio.Runner(loop_factory=loop) as loop_runner:
            loop_runner.run(until_done())
    except StartError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
