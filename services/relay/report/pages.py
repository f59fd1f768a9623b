"""The report of a period: its page, API and command. Text of an alert cannot control the terminal."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.relay.cli import add_config_option, format_table, run_with_outbox
from services.relay.config import RelaySettings
from services.relay.console.frame import Console, View
from services.relay.outbox.store import StoreUnavailableError
from services.relay.preview.pages import read_part
from services.relay.proofs.queries import format_coverage
from services.relay.report.queries import Report, read_report
from services.relay.report.report import (
    DEFAULT_SINCE,
    PARAMETERS,
    ReportReader,
    encode_report,
    explain_delay,
    format_csv,
    parse_period,
)
from services.relay.text import clean_line, format_seconds
from shared.http.json_api import RefusedError, check_names
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml report --since 30d
  keypulse-relay --config relay.yml report --from 2026-11-01 --to 2026-11-30 --csv > november.csv
  keypulse-relay --config relay.yml report --since 7d --json"""


@click.command("report", short_help="Report what happened in a period.", epilog=_EXAMPLES)
@click.option("--since", metavar="DURATION", help=f"The last 12h, 7d, …; {DEFAULT_SINCE} by default.")
@click.option("--from", "start", metavar="TIME", help="From this date or time on, instead of --since.")
@click.option("--to", "end", metavar="TIME", help="Up to this date or time; now by default.")
@click.option("--json", "output", flag_value="json", help="Print one JSON object.")
@click.option("--csv", "output", flag_value="csv", help="Print CSV; docs/reference.md has its columns.")
@add_config_option
def command(
    config: Path | None, /, *, since: str | None, start: str | None, end: str | None, output: str | None
) -> None:
    """Report incidents, times to deliver and to acknowledge, what was late and why, and what was never delivered."""
    settings = load_settings_or_exit(RelaySettings, config)
    given = {name: value for name, value in zip(PARAMETERS, (since, start, end), strict=True) if value is not None}
    now = time.time()
    period = parse_option_or_exit(
        " ".join(f"--{name}" for name in given) or "--since",
        lambda _given: parse_period(given, now, settings.messages.zone),
        " ".join(given.values()),
    )
    channels, every = frozenset(settings.channels), settings.proof.every
    read = partial(read_report, period=period, channels=channels, now=now, proof_every=every)
    report = run_with_outbox(settings, lambda store: store.read(read), read_only=True)
    if output == "csv":
        click.echo(format_csv(report), nl=False)
    elif output == "json":
        click.echo(json.dumps(encode_report(report)))
    else:
        for line in _list_lines(encode_report(report)):
            click.echo(line)


def _list_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"from {report['from']} to {report['to']}"
    if report["complete_since"]:
        yield f"since {report['complete_since']} only: retention has deleted what is older"
    incidents = report["incidents"]
    count = f"{'at least ' if incidents['is_minimum'] else ''}{incidents['count']}"
    yield ""
    yield f"incidents: {count}, {incidents['acknowledged']} acknowledged{_list_times(incidents['time_to_acknowledge'])}"
    yield f"escalations: {incidents['escalations']}"
    if paths := report["paths"]:
        yield paths["summary"] + (f", since {paths['complete_since']}" if paths["complete_since"] else "")
    yield from format_table(
        ("alert", "incidents", "acknowledged"),
        [(each["alertname"], each["count"], each["acknowledged"]) for each in incidents["alerts"]],
    )
    yield from format_table(
        ("service", "incidents", "acknowledged"),
        [(each["service"] or "-", each["count"], each["acknowledged"]) for each in incidents["services"]],
    )
    yield from format_table(
        ("channel", "delivered", "dead", "waiting", "p50", "p95", "worst"),
        [
            (
                *(each[name] for name in ("channel", "delivered", "dead", "waiting")),
                *map(format_seconds, (each["p50_seconds"], each["p95_seconds"], each["worst_seconds"])),
            )
            for each in report["channels"]
        ],
    )
    yield from format_table(
        ("slowest", "channel", "alert", "id", "why"),
        [
            (format_seconds(each["seconds"]), *(each[name] for name in ("channel", "alertname", "id", "why")))
            for each in report["late"]
        ],
    )
    yield from format_table(
        ("never delivered", "channel", "reason", "last id", "last answer"),
        [
            tuple(each[name] or "-" for name in ("count", "channel", "reason", "last_id", "last_answer"))
            for each in report["never_delivered"]
        ],
    )
    refused = report["refused_webhooks"]
    yield ""
    yield f"quarantined webhooks: {'at least ' if refused['is_minimum'] else ''}{refused['count']}"
    for each in refused["reasons"]:
        yield f"  {each['count']} x {each['code']}: {clean_line(each['reason'])}"


def _list_times(times: dict[str, float | None]) -> str:
    names = ("p50", "p95", "worst")
    formatted = (f"{name} {format_seconds(times[f'{name}_seconds'])}" for name in names)
    return "" if times["worst_seconds"] is None else f" ({', '.join(formatted)})"


_FRAGMENT: Final = "figures"
_PRESETS: Final = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days"}
_CAUSES: Final = {
    "provider": "Provider",
    "rate_limit": "Rate limit",
    "circuit_breaker": "Circuit breaker",
    "restored_backup": "Restored backup",
    "unknown": "Unknown",
}


class ReportPages:
    """The page of the report, and its figures as JSON and CSV.

    Args:
        reader: of reports.
        zone: the name of the time zone in which dates are read.
    """

    def __init__(self, reader: ReportReader, zone: str) -> None:
        self._reader = reader
        self._zone = zone

    def add_routes(self, console: Console) -> None:
        """The routes of page, API and CSV."""
        console.page("/report", self._show, "report.html.j2", title="Report")
        console.api("/report", self._read, encode=encode_report)
        console.page("/report.csv", self._get_csv)

    async def _read(self, request: Request) -> Report:
        try:
            check_names(request.query_params, PARAMETERS)
            return await self._reader.read(request.query_params)
        except ValueError as error:
            raise RefusedError(str(error)) from None

    async def _show(self, request: Request) -> View:
        given = {name: value for name, value in request.query_params.items() if name in PARAMETERS and value}
        error, unavailable, report = None, None, None
        try:
            report = await read_part(request, _FRAGMENT, self._read(request))
        except RefusedError as problem:
            error = str(problem)
        except StoreUnavailableError as problem:
            if request.headers.get("hx-target") != _FRAGMENT:
                raise  # the whole page says so
            unavailable = str(problem)
        values = {
            "report": report,
            "error": error,
            "unavailable": unavailable,
            "given": given,
            "since": given.get("since", "" if given else DEFAULT_SINCE),
            "presets": _PRESETS,
            "zone": self._zone,
            "query": urlencode(given),
            "causes": _CAUSES,
            "explain_delay": explain_delay,
            "format_coverage": format_coverage,
        }
        return View(values, 400 if error else 200)

    async def _get_csv(self, request: Request) -> Response:
        try:
            report = await self._read(request)
        except RefusedError as error:
            return PlainTextResponse(f"{error}\n", error.status)
        headers = {"Content-Disposition": 'attachment; filename="keypulse-report.csv"'}
        return Response(format_csv(report), media_type="text/csv", headers=headers)
