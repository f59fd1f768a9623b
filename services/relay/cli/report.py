"""`report`: what happened in a period, as a table, JSON or CSV. Text of an alert cannot control the terminal."""

import json
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from services.relay.cli.command_context import add_config_option, run_with_outbox
from services.relay.config import RelaySettings
from services.relay.outbox.queries.report import read_report
from services.relay.report.encoding import encode_report, format_csv
from services.relay.report.period import DEFAULT_SINCE, PARAMETERS, parse_period
from services.relay.text import clean_line, format_seconds
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
    period = parse_option_or_exit(
        " ".join(f"--{name}" for name in given) or "--since",
        lambda _given: parse_period(given, time.time(), settings.messages.zone),
        " ".join(given.values()),
    )
    read = partial(read_report, period=period, channels=frozenset(settings.channels))
    report = run_with_outbox(settings, lambda store: store.read(read), read_only=True)
    if output == "csv":
        click.echo(format_csv(report), nl=False)
    elif output == "json":
        click.echo(json.dumps(encode_report(report)))
    else:
        for line in _list_lines(encode_report(report)):
            click.echo(line)


def _list_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for a person."""
    yield f"from {report['from']} to {report['to']}"
    if report["complete_since"]:
        yield f"since {report['complete_since']} only: retention has deleted what is older"
    incidents = report["incidents"]
    count = f"{'at least ' if incidents['is_minimum'] else ''}{incidents['count']}"
    yield ""
    yield f"incidents: {count}, {incidents['acknowledged']} acknowledged{_list_times(incidents['time_to_acknowledge'])}"
    yield f"escalations: {incidents['escalations']}"
    yield from _format_table(
        ("alert", "incidents", "acknowledged"),
        [(each["alertname"], each["count"], each["acknowledged"]) for each in incidents["alerts"]],
    )
    yield from _format_table(
        ("service", "incidents", "acknowledged"),
        [(each["service"] or "-", each["count"], each["acknowledged"]) for each in incidents["services"]],
    )
    yield from _format_table(
        ("channel", "delivered", "dead", "waiting", "p50", "p95", "worst"),
        [
            (
                *(each[name] for name in ("channel", "delivered", "dead", "waiting")),
                *map(format_seconds, (each["p50_seconds"], each["p95_seconds"], each["worst_seconds"])),
            )
            for each in report["channels"]
        ],
    )
    yield from _format_table(
        ("slowest", "channel", "alert", "id", "why"),
        [
            (format_seconds(each["seconds"]), *(each[name] for name in ("channel", "alertname", "id", "why")))
            for each in report["late"]
        ],
    )
    yield from _format_table(
        ("never delivered", "channel", "reason", "last id", "last answer"),
        [
            tuple(each[name] or "-" for name in ("count", "channel", "reason", "last_id", "last_answer"))
            for each in report["never_delivered"]
        ],
    )
    refused = report["refused_webhooks"]
    yield ""
    yield f"refused webhooks: {'at least ' if refused['is_minimum'] else ''}{refused['count']}"
    for each in refused["reasons"]:
        yield f"  {each['count']} x {each['code']}: {clean_line(each['reason'])}"


def _list_times(times: dict[str, float | None]) -> str:
    names = ("p50", "p95", "worst")
    formatted = (f"{name} {format_seconds(times[f'{name}_seconds'])}" for name in names)
    return "" if times["worst_seconds"] is None else f" ({', '.join(formatted)})"


def _format_table(heading: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """A table with columns as wide as they need; nothing for no rows."""
    lines = [heading, *(tuple(clean_line(str(cell)) for cell in row) for row in rows)]
    if len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    yield ""
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
