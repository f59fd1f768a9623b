"""Many groups at once: Alertmanager's own Slack and PagerDuty receivers, and Alertmanager → relay, into the same sinks.

The two take turns, each time with fresh programs and a fresh database. Time runs from the moment at which Alertmanager
may first send (the first alert is posted, plus `group_wait`, which is longer than the posting takes) until both sinks
have every group. Before, one message of each is shown to the demo's stand-ins, which refuse what the providers would.
"""

import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from tests.bench.alerts import annotations, labels
from tests.bench.machine import cpu_seconds, peak_mb, resident_mb
from tests.bench.stage import ROUTING_KEY, Running, Stage, free_port, pagerduty, slack, stage, to_relay
from tests.bench.table import Row

GROUP_WAIT: Final = 3.0
_TIMEOUT: Final = 120.0
_POLL_SECONDS: Final = 0.5
"""Between looks at what the relay holds."""


@dataclass(frozen=True, slots=True)
class Run:
    """One storm."""

    seconds: float
    messages: int
    alertmanager_mb: float
    relay_mb: float | None
    """The most that its processes held together, as often as it was looked; None where there was no relay."""
    relay_cpu: float | None
    """Seconds of all cores, the start included."""
    refused: int
    """How many requests Alertmanager had to make again."""
    failed: Mapping[str, int]
    """How many attempts of the relay's failed, by reason."""


async def storm(disk: Path, groups: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where something is missing or was not delivered."""
    click.echo(f"\nstorm: {groups} groups at once from Alertmanager to Slack and PagerDuty, the pace lifted")
    await _real(disk)
    click.echo("  one message of each way was taken by the stand-ins")
    own: list[Run] = []
    relayed: list[Run] = []
    for number in range(1, rounds + 1):
        for name, runs, with_relay in (("Alertmanager's own", own, False), ("with the relay", relayed, True)):
            async with stage(disk) as bench:
                runs.append(await _run(bench, groups, with_relay=with_relay))
            click.echo(f"  round {number}, {name:18}  {_format_result(runs[-1], groups)}")
    times = tuple(ours.seconds / theirs.seconds for ours, theirs in zip(relayed, own, strict=True))
    click.echo(f"  the relay takes {statistics.median(times):.2f} times as long")
    return [
        Row(f"{groups:,} groups: time with the relay, of Alertmanager's own receivers", times, at_most=1.3),
        Row("deliveries by the relay", tuple(2 * groups / run.seconds for run in relayed), "a second"),
        Row("the relay's memory at most, of both processes", tuple(run.relay_mb or 0.0 for run in relayed), "MB"),
        Row("the relay's CPU", tuple(run.relay_cpu or 0.0 for run in relayed), "s"),
    ]


async def _run(bench: Stage, groups: int, *, with_relay: bool) -> Run:
    sink = await bench.module("tests.bench.sink")
    relay = await bench.relay({"slack": slack(sink.url), "pagerduty": pagerduty(sink.url)}) if with_relay else None
    receiver = to_relay(relay) if relay else {**_to_slack(sink), **_to_pagerduty(sink)}
    alertmanager = await bench.alertmanager(receiver, f"{GROUP_WAIT:g}s")
    may_send = await bench.post_alerts(alertmanager, _build_alerts(groups), GROUP_WAIT)

    resident: list[float] = []

    async def complete() -> bool:
        if relay and time.monotonic() > may_send + len(resident) * _POLL_SECONDS:
            resident.append(resident_mb(relay.pid))
        found = await bench.get(f"{sink.url}/")
        return all(provider["groups"] == groups for provider in found.values())

    await bench.until("every group to be delivered", _TIMEOUT, complete)
    found = await bench.get(f"{sink.url}/")
    return Run(
        seconds=max(provider["last"] for provider in found.values()) - may_send,
        messages=sum(provider["messages"] for provider in found.values()),
        alertmanager_mb=peak_mb(alertmanager.pid),
        relay_mb=max(*resident, resident_mb(relay.pid)) if relay else None,
        relay_cpu=cpu_seconds(relay.pid) if relay else None,
        refused=sum((await _failures(bench, alertmanager, "alertmanager_notification_requests_failed_total")).values()),
        failed=await _failures(bench, relay, "relay_delivery_attempts_total") if relay else {},
    )


def _format_result(run: Run, groups: int) -> str:
    repeated = run.messages - 2 * groups
    return "  ".join(
        (
            f"{run.seconds:6.2f} s",
            f"{2 * groups / run.seconds:6.0f} deliveries/s",
            f"Alertmanager {run.alertmanager_mb:.0f} MB",
            *([f"relay {run.relay_mb:.0f} MB, {run.relay_cpu:.1f} s of CPU"] if run.relay_mb else []),
            *([f"{repeated} sent twice"] if repeated else []),
            *([f"{run.refused} requests of Alertmanager's refused"] if run.refused else []),
            *(f"{number} attempts of the relay's: {reason}" for reason, number in run.failed.items()),
        )
    )


async def _real(disk: Path) -> None:
    """Raises BenchError where a message is not what the providers take."""
    async with stage(disk) as bench:
        sink = await bench.module("tests.bench.sink")
        stand_ins = await bench.stand_ins(free_port())
        relay = await bench.relay({"slack": slack(stand_ins.url), "pagerduty": pagerduty(stand_ins.url)})
        # The stand-in Slack has no incoming webhooks, so of Alertmanager's own message only the content is looked at.
        receiver = {**_to_slack(sink), **_to_pagerduty(stand_ins), **to_relay(relay)}
        await bench.post_alerts(await bench.alertmanager(receiver, "0s"), _build_alerts(1), 0.0)

        async def arrived() -> bool:
            state = await bench.get(f"{stand_ins.url}/api/state")
            own = (await bench.get(f"{sink.url}/"))["slack"]["first_message"]
            relayed = [message["text"] for channel in state["slack"] for message in channel["messages"]]
            pages = [event["payload"]["summary"] for event in state["pagerduty"]["events"]]
            text = annotations(0)["summary"]
            return len(pages) == 2 and "attachments" in own and "group-00000" in own and text in "".join(relayed)

        await bench.until("one message of each way, taken by Slack and PagerDuty", 10, arrived)


def _build_alerts(groups: int) -> list[dict[str, Any]]:
    return [{"labels": labels(number), "annotations": annotations(number)} for number in range(groups)]


async def _failures(bench: Stage, program: Running, name: str) -> dict[str, int]:
    """What a counter says by its label `reason`, where it has one, without what went well and what is 0."""
    async with bench.http.get(f"{program.url}/metrics") as response:
        text = await response.text()
    found: Counter[str] = Counter()
    for given, number in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        reason = re.search(r'reason="(\w+)"', given)
        found[reason[1] if reason else ""] += int(float(number))
    return {reason: number for reason, number in found.items() if number and reason != "ok"}


def _to_slack(sink: Running) -> dict[str, object]:
    return {"slack_configs": [{"api_url": f"{sink.url}/webhook", "channel": "#security-critical"}]}


def _to_pagerduty(provider: Running) -> dict[str, object]:
    return {"pagerduty_configs": [{"routing_key": ROUTING_KEY, "url": f"{provider.url}/pagerduty/v2/enqueue"}]}
