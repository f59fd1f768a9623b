"""A Slack that takes every request and never answers: what it costs the intake, the mail and the pages.

Mail and PagerDuty are the demo's stand-ins. Time runs from the first webhook until both have all of them.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from tests.bench.alerts import webhook
from tests.bench.intake import end
from tests.bench.load import Load, load
from tests.bench.stage import Stage, free_port, pagerduty, slack, stage
from tests.bench.table import Row

CLIENTS: Final = 20
_TIMEOUT: Final = 60.0
_GROUP: Final = re.compile(r"group-\d{5}")


@dataclass(frozen=True, slots=True)
class Run:
    """One round."""

    intake: Load
    mail: float
    """Seconds until the mailbox had everything."""
    pages: float


async def hanging(disk: Path, webhooks: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where something was not accepted or not delivered."""
    click.echo(f"\nhanging: {webhooks} webhooks from {CLIENTS} clients while Slack hangs, the pace lifted")
    runs: list[Run] = []
    for number in range(1, rounds + 1):
        async with stage(disk) as bench:
            runs.append(await _run(bench, webhooks))
        click.echo(f"  round {number}  {_format_result(runs[-1])}")

    return [
        Row("intake's p99", tuple(run.intake.percentile(99) for run in runs), "ms", at_most=100),
        Row(f"until all {webhooks} mails had arrived", tuple(run.mail for run in runs), "s", at_most=10),
        Row(f"until all {webhooks} pages had arrived", tuple(run.pages for run in runs), "s", at_most=10),
    ]


async def _run(bench: Stage, webhooks: int) -> Run:
    sink = await bench.module("tests.bench.sink")
    smtp = free_port()
    stand_ins = await bench.stand_ins(smtp)
    mail = {"kind": "email", "host": "127.0.0.1", "port": smtp, "tls": "none"}
    addresses = {"from": "keypulse <alerts@example.org>", "to": ["oncall@example.org"]}
    channels = {
        "slack": slack(f"{sink.url}/hang"),
        "email": {**mail, **addresses},
        "pagerduty": pagerduty(stand_ins.url),
    }
    relay = await bench.relay(channels)
    try:
        bodies = [webhook(number) for number in range(webhooks)]
        started = time.time()
        accepted = await load(relay, bodies, CLIENTS)
        arrived: dict[str, dict[str, float]] = {}

        async def all_arrived() -> bool:
            state = await bench.get(f"{stand_ins.url}/api/state")
            arrived["mail"] = _first({mail["at"]: mail["subject"] + mail["text"] for mail in state["mailbox"]})
            pages = state["pagerduty"]["events"]
            arrived["pages"] = _first({event["at"]: event["payload"]["summary"] for event in pages})
            return all(len(groups) == webhooks for groups in arrived.values())

        await bench.until("every mail and every page", _TIMEOUT, all_arrived)
    finally:
        end(sink)
    return Run(accepted, *(max(arrived[name].values()) - started for name in ("mail", "pages")))


def _first(messages: dict[float, str]) -> dict[str, float]:
    """When each group was told of for the first time."""
    first: dict[str, float] = {}
    for at, text in sorted(messages.items()):
        for group in _GROUP.findall(text):
            first.setdefault(group, at)
    return first


def _format_result(run: Run) -> str:
    return (
        f"intake p50 {run.intake.percentile(50):6.1f} ms  p99 {run.intake.percentile(99):6.1f} ms  "
        f"all mails {run.mail:5.2f} s  all pages {run.pages:5.2f} s"
    )
