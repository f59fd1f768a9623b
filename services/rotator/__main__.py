"""`keypulse-rotator`: rotates data keys and re-wraps them, and reports what it did."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from services.rotator import inspection
from services.rotator.app import SessionCommand, run_and_report
from services.rotator.config import RotatorSettings
from services.rotator.conformance import INTRODUCTION, run_conformance
from services.rotator.doctor import open_checks
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import destroy_version, retire_version
from services.rotator.runner import restore_backup, resume, rollback, run
from shared import VERSION
from shared.check import format_line
from shared.keyring.administration import AdministrationError, RotationType
from shared.process.command_line import load_settings_or_exit
from shared.process.doctor import create_doctor_command
from shared.process.first_configuration import create_init_command
from shared.smoke.report import build_document

gc.freeze()
gc.enable()

_EXAMPLES: Final = """\b
Examples:
  keypulse-rotator doctor --config rotator.yml
  keypulse-rotator plan --config rotator.yml
  keypulse-rotator run --type rewrap-kek --config rotator.yml --dry-run
  keypulse-rotator run --type new-dek --config rotator.yml
  keypulse-rotator run --all --config rotator.yml
  keypulse-rotator resume --config rotator.yml
  keypulse-rotator rollback --config rotator.yml
  keypulse-rotator census --config rotator.yml --json
  keypulse-rotator restore-check latest --config rotator.yml
  keypulse-rotator retire 1 --confirm 1 --config rotator.yml
  keypulse-rotator conformance --config rotator.yml"""

Command = Callable[..., Any]
_TYPES: Final = click.Choice([str(each) for each in RotationType])


@click.group(epilog=_EXAMPLES)
@click.version_option(VERSION, prog_name="keypulse")
def main() -> None:
    """Rotate data keys: a new one, or all of them wrapped by the KMS key's current version.

    Exits with 0 done, 1 failed, 2 wrong usage or configuration.
    """


def _add_options(command: Command) -> Command:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        click.option("--config", type=click.Path(path_type=Path), help="The YAML file."),
    ):
        command = option(command)
    return command


def _run_command(name: str, config: Path | None, as_json: bool, command: SessionCommand) -> None:
    settings = load_settings_or_exit(RotatorSettings, config)
    _run_commands(settings, config, {name: command}, as_json=as_json)


def _run_commands(
    settings: RotatorSettings, config: Path | None, commands: Mapping[str, SessionCommand], *, as_json: bool
) -> None:
    """Runs one after the other, also after one that failed, and exits with 1 if any did."""
    code = 0
    for command, run_command in commands.items():
        name = command.partition(" ")[0]
        outcome = run_and_report(name, settings, str(config or "rotator.yml"), run_command, os.environ, as_json=as_json)
        code = code if outcome.is_success else 1
        if outcome is CommandOutcome.STOPPED:
            break
    sys.exit(code)


@main.command()
@_add_options
@click.option("--type", "type_", type=_TYPES, help="Of one type only.")
def plan(config: Path | None, *, as_json: bool, type_: str | None) -> None:
    """Say what a run would do. Changes nothing."""
    types = (RotationType(type_),) if type_ else tuple(RotationType)
    _run_command("plan", config, as_json, lambda session: inspection.show_plans(session, types))


@main.command("run")
@_add_options
@click.option("--type", "type_", type=_TYPES, help="What is rotated.")
@click.option("--all", "is_all", is_flag=True, help="Resume what was left, then rotate each type of the driver.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def run_(config: Path | None, *, as_json: bool, type_: str | None, is_all: bool, dry_run: bool) -> None:
    """Rotate, if there is something to do; never prompts."""
    if is_all is (type_ is not None):
        raise click.UsageError("expected one of --type TYPE and --all")
    types = (RotationType(type_),) if type_ else tuple(RotationType)
    if dry_run:
        typed = f"run {f'--type {type_}' if type_ else '--all'} --dry-run"
        _run_command("plan", config, as_json, lambda session: inspection.show_plans(session, types, typed))
    settings = load_settings_or_exit(RotatorSettings, config)
    commands: dict[str, SessionCommand] = {} if type_ else {"resume": resume}
    for each in types if type_ else settings.driver.rotation_types:
        commands[f"run --type {each}"] = partial(run, type_=each)
    _run_commands(settings, config, commands, as_json=as_json)


@main.command("resume")
@_add_options
def resume_(config: Path | None, *, as_json: bool) -> None:
    """Finish a rotation that was left in the middle."""
    _run_command("resume", config, as_json, resume)


@main.command("rollback")
@_add_options
def rollback_(config: Path | None, *, as_json: bool) -> None:
    """Undo the latest rotation by its journal."""
    _run_command("rollback", config, as_json, rollback)


@main.command()
@_add_options
def status(config: Path | None, *, as_json: bool) -> None:
    """Show the latest rotation."""
    _run_command("status", config, as_json, inspection.show_status)


@main.command()
@_add_options
def census(config: Path | None, *, as_json: bool) -> None:
    """Count which data keys and records need which version."""
    _run_command("census", config, as_json, inspection.show_key_usage)


@main.command()
@_add_options
@click.option("--full", is_flag=True, help="Read every record, not some of each data key's.")
def verify(config: Path | None, *, as_json: bool, full: bool) -> None:
    """Read everything, and say what cannot be read."""
    _run_command("verify", config, as_json, lambda session: inspection.run_verification(session, full=full))


@main.command("restore-check", short_help="Read a whole backup, and compare it.")
@click.argument("file", metavar="FILE|latest")
@_add_options
def restore_check(config: Path | None, file: str, *, as_json: bool) -> None:
    """Read a backup whole, compare it with the keyring, and try a data key of each version."""
    _run_command("restore-check", config, as_json, lambda session: inspection.check_backup(session, file))


@main.command("restore", short_help="Restore data keys from a backup.")
@click.argument("file", metavar="FILE|latest")
@_add_options
def restore_(config: Path | None, file: str, *, as_json: bool) -> None:
    """Put a backup back, for data keys that are damaged or gone; a rotation is undone by `rollback`."""
    _run_command("restore", config, as_json, lambda session: restore_backup(session, file))


def _add_confirmation(command: Command) -> Command:
    for option in (
        click.option(
            "--confirm-backups",
            "confirmed_backups",
            default=0,
            type=click.IntRange(min=0),
            metavar="N",
            help="How many backups that are kept elsewhere nobody wants to restore any more.",
        ),
        click.option("--confirm", required=True, metavar="VERSION", help="The version again, as you mean it."),
        click.argument("version"),
    ):
        command = option(command)
    return command


def _check_confirmation(version: str, confirm: str) -> None:
    if confirm != version:
        click.echo(f"--confirm: expected the same version, {version}, got {confirm}", err=True)
        sys.exit(2)


@main.command("retire", short_help="Disable a version that nothing needs.")
@_add_options
@_add_confirmation
def retire_(config: Path | None, *, as_json: bool, version: str, confirm: str, confirmed_backups: int) -> None:
    """Disable a version of the KMS key that nothing needs any more."""
    _check_confirmation(version, confirm)
    _run_command("retire", config, as_json, lambda session: retire_version(session, version, confirmed_backups))


@main.command("destroy", short_help="Schedule a retired version's destruction; Transit destroys at once.")
@_add_options
@_add_confirmation
def destroy_(config: Path | None, *, as_json: bool, version: str, confirm: str, confirmed_backups: int) -> None:
    """Have a version destroyed that was retired 30 days ago. Older backups of the database may need it for ever.

    Cloud KMS schedules that, and can restore the version until its date. Transit destroys it at once and for good.
    """
    _check_confirmation(version, confirm)
    _run_command("destroy", config, as_json, lambda session: destroy_version(session, version, confirmed_backups))


@main.command("conformance")
@_add_options
def conformance_(config: Path, *, as_json: bool) -> None:
    """Check a service's admin API. Re-wraps one data key at most, and rolls that back."""
    settings = load_settings_or_exit(RotatorSettings, config)
    try:
        if not as_json:
            click.echo(f"{settings.driver.location}: {INTRODUCTION}\n", err=True)
        results = asyncio.run(run_conformance(settings))
    except (RotatorError, AdministrationError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    document = build_document(results)
    lines = "\n".join(format_line(result, verbose=True) for result in results)
    click.echo(json.dumps(document, indent=2) if as_json else lines)
    sys.exit(0 if document["ok"] else 1)


main.add_command(create_doctor_command(RotatorSettings, open_checks, "keypulse-rotator"))
_FIRST = Path(__file__).with_name("first_configuration.yml")
main.add_command(create_init_command(RotatorSettings, _FIRST, "keypulse-rotator"))


if __name__ == "__main__":
    main(prog_name="keypulse-rotator")
