"""`keypulse-audit`: audit logging of Cloud KMS, for one project or several, and what Google owes for a month."""

import asyncio
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click

from ops.audit.apply import apply_changes
from ops.audit.auditor_queries import list_queries
from ops.audit.google_api import GoogleApi, GoogleError
from ops.audit.google_parts import read_part
from ops.audit.plan import (
    Change,
    DesiredState,
    UnchangeableError,
    diff_change,
    format_title,
    list_warnings,
    plan_changes,
)
from ops.audit.sla import OBJECTIVES, TIME_ZONE, Month, assess, format_json, format_markdown, read_minutes
from ops.audit.verify import AuditProbe, Clock, verify_logging
from shared import VERSION
from shared.check import CheckError, format_line, to_one_line
from shared.config.secret_file import SecretFile
from shared.config.settings import parse_duration
from shared.process.command_line import URL_WITH_USER, ParsedOption, replace_unencodable_output
from shared.smoke.http_client import CA_FILE, open_client

_EXAMPLES = """\b
Examples:
  keypulse-audit plan --project acme-prod --exempt serviceAccount:exporter@acme-prod.iam.gserviceaccount.com
  keypulse-audit apply --project acme-prod --project acme-test --location europe-west3 --bigquery \\
      --bucket '{project}-kms-audit'
  keypulse-audit verify --project acme-prod --location europe-west3 --bigquery
  keypulse-audit queries --project acme-prod --bigquery
  keypulse-audit sla --project acme-prod --month 2026-03 --prometheus http://127.0.0.1:9090 --evidence sla.md
Give `verify` the same options as `apply`.
"""
_PROJECT: Final = r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_MEMBER: Final = r"(user|serviceAccount|group|domain|principal|principalSet):\S+"
_LOCATION: Final = "[A-Za-z][A-Za-z0-9-]+"
_ENDPOINT: Final = r"https?://[^\s/@]+/?"

Command = Callable[..., None]


def _create_option_type(pattern: str, description: str) -> ParsedOption[str]:
    def check(given: str) -> str:
        if not re.fullmatch(pattern, given):
            raise ValueError(f"expected {description}")
        return given

    return ParsedOption(check)


_PROJECTS = click.option(
    "--project",
    "projects",
    multiple=True,
    required=True,
    type=_create_option_type(_PROJECT, "the ID of a project, such as acme-prod"),
    help="The ID of a project; may be given several times.",
)
_BIGQUERY = click.option("--bigquery", is_flag=True, help="The logs also go to BigQuery, dataset kms_audit.")


def _add_state_options(command: Command) -> Command:
    """Add the options of the desired state."""
    for option in (
        click.option(
            "--endpoint",
            envvar="KEYPULSE_AUDIT_ENDPOINT",
            type=_create_option_type(_ENDPOINT, "the address of a stand-in, such as http://127.0.0.1:8080"),
            help="A stand-in for Google, for tests; it gets no credentials. Also from KEYPULSE_AUDIT_ENDPOINT.",
        ),
        click.option(
            "--exempt",
            "exempted",
            multiple=True,
            type=_create_option_type(_MEMBER, "a member, such as serviceAccount:NAME@PROJECT.iam.gserviceaccount.com"),
            help="A member whose reads are not logged, such as the exporter; several times.",
        ),
        click.option(
            "--location",
            type=_create_option_type(_LOCATION, "a region such as europe-west3, or EU or US"),
            help="The location of dataset and bucket.",
        ),
        click.option(
            "--bucket", help="The logs also go to this bucket, for two years; {project} stands for the project's ID."
        ),
        _BIGQUERY,
        _PROJECTS,
    ):
        command = option(command)
    return command


@click.group(epilog=_EXAMPLES)
@click.version_option(VERSION, prog_name="keypulse-audit")
def main() -> None:
    """Set up the audit logging of Cloud KMS, verify it, and count a month by Google's SLA.

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    replace_unencodable_output()


@main.command()
@_add_state_options
def plan(**options: Any) -> None:
    """Print what `apply` would change, and change nothing."""

    def each(api: GoogleApi, desired: DesiredState) -> Iterator[str]:
        state = {part: read_part(api, part, desired) for part in desired.list_parts}
        due = plan_changes(state, desired)
        for change in due:
            yield from _format_change(change, desired)
        yield from (f"note: {warning}" for warning in list_warnings(state))
        yield f"{len(due)} to change, {len(desired.list_parts) - len(due)} as configured. Nothing was changed."

    _run_for_each_project(options, each)


@main.command()
@_add_state_options
def apply(**options: Any) -> None:
    """Make the changes that `plan` prints. If it was stopped, run it again: it continues where it stopped."""

    def each(api: GoogleApi, desired: DesiredState) -> Iterator[str]:
        changes = 0
        for change in apply_changes(api, desired, time.sleep):
            changes += 1
            yield from _format_change(change, desired)
        yield f"{changes} changed, {len(desired.list_parts) - changes} as configured."

    _run_for_each_project(options, each)


@main.command()
@_add_state_options
@click.option(
    "--timeout", default="10m", type=ParsedOption(parse_duration), help="From the probe to the last place. Default 10m."
)
@click.option("--probe", type=ParsedOption(AuditProbe.parse), help="Look for the probe of an earlier run; send none.")
def verify(**options: Any) -> None:
    """Send a probe to KMS, and wait until each log has it."""
    states = _build_desired_states(options)
    probe = options["probe"] or AuditProbe.create(get_utc_now(), secrets.token_hex(4))
    clock, ok = Clock(time.monotonic, time.sleep), True
    with closing(_connect_google(options)) as google:
        for result in verify_logging(
            google, states, probe, clock, send_probe=not options["probe"], timeout=options["timeout"]
        ):
            click.echo(format_line(result, verbose=True))
            ok = ok and result.is_ok
    sys.exit(0 if ok else 1)


@main.command()
@_PROJECTS
@_BIGQUERY
def queries(projects: tuple[str, ...], *, bigquery: bool) -> None:
    """Print commands for gcloud and bq that answer auditors' questions."""
    for project in projects:
        for question, command in list_queries(project, bigquery=bigquery):
            click.echo(f"# {question}\n{command}\n")


def _parse_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise ValueError("expected one such as UTC; where the machine has none: pip install tzdata") from None


@main.command()
@_PROJECTS
@click.option("--month", "name", required=True, help="The month, such as 2026-03; it has to be over.")
@click.option("--prometheus", "url", required=True, type=URL_WITH_USER, help="It scrapes the exporter.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A bearer token for Prometheus.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="Certificate authorities in PEM, for Prometheus.")
@click.option(
    "--time-zone", "zone", default=TIME_ZONE, type=ParsedOption(_parse_zone), help="Of the month. Default Google's."
)
@click.option(
    "--objective",
    "objectives",
    type=click.FloatRange(0, 100),
    multiple=True,
    default=tuple(OBJECTIVES),
    help="A Monthly Uptime Percentage that was promised; several times. Default 99.99 and 99.95.",
)
@click.option(
    "--evidence", "files", type=click.Path(path_type=Path), multiple=True, help="Write it to FILE.md or FILE.json, too."
)
def sla(  # noqa: PLR0913 - an option each
    *,
    projects: tuple[str, ...],
    name: str,
    url: str,
    token_file: Path | None,
    ca_file: Path | None,
    zone: ZoneInfo,
    objectives: tuple[float, ...],
    files: tuple[Path, ...],
) -> None:
    """Count a month by Google's Service Level Agreement for Cloud KMS. Exit code 1 also if an objective was missed."""
    try:
        month = Month.parse(name, zone)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"expected a month such as 2026-03, got {name!r}", param_hint="--month") from None
    if month.ends > get_utc_now().timestamp():
        raise click.BadParameter(f"expected a month that is over, got {name}", param_hint="--month")
    if wrong := [file for file in files if file.suffix not in {".md", ".json"}]:
        raise click.BadParameter(f"expected FILE.md or FILE.json, got {wrong[0]}", param_hint="--evidence")

    async def assess_projects() -> list[dict[str, Any]]:
        CA_FILE.set(ca_file)
        async with open_client(url, SecretFile(token_file) if token_file else None, timeout=60) as prometheus:
            source = str(prometheus.url.with_user(None))
            return [
                assess(await read_minutes(prometheus, project, month), project, month, objectives, source)
                for project in dict.fromkeys(projects)
            ]

    try:
        documents = asyncio.run(assess_projects())
        for file in files:
            file.write_text((format_json if file.suffix == ".json" else format_markdown)(documents), encoding="utf-8")
    except (CheckError, OSError) as error:
        click.secho(to_one_line(str(error)), fg="red", err=True)
        sys.exit(1)
    click.echo(format_markdown(documents), nl=False)
    sys.exit(0 if all(each["is_met"] for document in documents for each in document["objectives"]) else 1)


def get_utc_now() -> datetime:
    """The time of day, from which the probe has its name."""
    return datetime.now(UTC)


def _build_desired_states(options: dict[str, Any]) -> list[DesiredState]:
    bucket, projects = options["bucket"], dict.fromkeys(options["projects"])
    if (bucket or options["bigquery"]) and not options["location"]:
        raise click.UsageError("--bigquery and --bucket need --location: where the logs are stored")
    if bucket and len(projects) > 1 and "{project}" not in bucket:
        raise click.UsageError("--bucket needs {project} in its name for several projects: one bucket for each")
    states = []
    for project in projects:
        name = bucket and bucket.replace("{project}", project)
        if name and not _BUCKET.fullmatch(name):
            raise click.UsageError(f"--bucket: expected 3 to 63 of a-z, 0-9, '.', '_' and '-', got {name!r}")
        exempted = frozenset(options["exempted"])
        states.append(DesiredState(project, exempted, options["bigquery"], name, options["location"] or ""))
    return states


def _connect_google(options: dict[str, Any]) -> GoogleApi:
    return GoogleApi(time.sleep, random.random, options["endpoint"])


def _run_for_each_project(
    options: dict[str, Any], run_project: Callable[[GoogleApi, DesiredState], Iterator[str]]
) -> None:
    """Run it for every project, even if others fail; exit 1 if one failed."""
    states, ok = _build_desired_states(options), True
    with closing(_connect_google(options)) as google:
        for desired_state in states:
            click.secho(f"project {desired_state.project}", bold=True)
            try:
                for text in run_project(google, desired_state):
                    colour = {"-": "red", "+": "green"}.get(text.strip()[:1])
                    click.secho(f"  {to_one_line(text)}", fg=colour)
            except (GoogleError, UnchangeableError) as error:
                ok = False
                click.secho(f"  {to_one_line(str(error))}", fg="red", err=True)
    sys.exit(0 if ok else 1)


def _format_change(change: Change, desired: DesiredState) -> Iterator[str]:
    yield format_title(change.part, desired)
    yield from (f"  {fact}" for fact in diff_change(change))


if __name__ == "__main__":
    main(prog_name="keypulse-audit")
