"""Many incidents at once, and a Slack with its real rate: when is each of them named, by Alertmanager and by the relay?

Both run in one go, each with fresh programs and a stand-in Slack of its own, which takes one post a second for each
channel with bursts of 8, and answers 429 to others. Time runs from the moment at which Alertmanager may first send.
Its own receiver sends a message for each incident, which at that rate takes half an hour at least: so it is watched for
a while.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ops.demo.stand_ins.slack.web_api import WEBHOOK_APP, WEBHOOK_SECRET
from tests.bench.stage import BenchError, Running, Stage, free_port, slack, stage, to_relay
from tests.bench.table import Row

GROUP_WAIT: Final = 5.0
_TIMEOUT: Final = 300.0
_SERVICES: Final = 40
_CRITICAL: Final = 20
"""Each so-manyth is critical."""
_GROUP: Final = re.compile(r"group-(\d{5})")
_NAMING: Final = ("header", "rich_text")
"""The blocks of the relay that say what a message is about; others say what else fires."""


@dataclass
class Naming:
    """What Slack has, so far."""

    named: dict[str, float] = field(default_factory=dict)
    """When each incident was named, seconds."""
    messages: int = 0

    def count_within(self, seconds: float) -> int:
        """How many incidents were named by then."""
        return sum(at <= seconds for at in self.named.values())


async def run_slack_benchmark(disk: Path, groups: int, window: float) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where something is missing or was not delivered."""
    click.echo(f"\nstorm-slack: {groups} incidents at once, and a Slack that takes a message a second for each channel")
    async with stage(disk) as bench:
        relayed = await _run(bench, groups, _TIMEOUT, with_relay=True)
    click.echo(
        f"  with the relay      every incident named after {max(relayed.named.values()):.1f} s; {_format(relayed)}"
    )
    async with stage(disk) as bench:
        own = await _run(bench, groups, window, with_relay=False)
    end = f"watched for {window:g} s: {len(own.named)} of {groups} named"
    if len(own.named) == groups:
        end = f"every incident named after {max(own.named.values()):.1f} s"
    click.echo(f"  Alertmanager's own  {end}; {_format(own)}")
    named = f"of {groups:,} incidents named by"
    return [
        Row(f"until the relay had named each of {groups:,} incidents", (max(relayed.named.values()),), "s"),
        Row("in how many messages", (relayed.messages,)),
        *(
            Row(f"{named} {who} after {seconds:g} s", (naming.count_within(seconds),))
            for who, naming in (("the relay", relayed), ("Alertmanager's own receiver", own))
            for seconds in (30.0, window)
        ),
    ]


def _format(naming: Naming) -> str:
    within = ", ".join(f"{naming.count_within(seconds)} within {seconds:g} s" for seconds in (30.0, 300.0))
    return f"{within}, {naming.messages} messages"


async def _run(bench: Stage, groups: int, seconds: float, *, with_relay: bool) -> Naming:
    """What Slack has once every incident is named, or after so many seconds."""
    provider = await bench.stand_ins(free_port(), "--slack-rates")
    if with_relay:
        relay = await bench.relay({"slack": slack(provider.url)}, limits_rates=True)
        receiver = to_relay(relay)
    else:
        webhook = f"{provider.url}/slack/services/{'/'.join(WEBHOOK_APP)}/{WEBHOOK_SECRET}"
        receiver = {"slack_configs": [{"api_url": webhook, "channel": "#security-critical"}]}
    alertmanager = await bench.alertmanager(receiver, f"{GROUP_WAIT:g}s")
    may_send = time.time() + GROUP_WAIT
    await bench.post_alerts(alertmanager, [_build_alert(number) for number in range(groups)], GROUP_WAIT)
    naming = Naming()

    async def is_over() -> bool:
        await _read(bench, provider, naming, may_send)
        return len(naming.named) == groups or time.time() > may_send + seconds

    await bench.until("every incident to be named", seconds + _TIMEOUT, is_over)
    if with_relay and len(naming.named) < groups:
        raise BenchError(f"the relay named {len(naming.named)} of {groups} incidents in {seconds:g} s")
    return naming


async def _read(bench: Stage, provider: Running, naming: Naming, since: float) -> None:
    state = await bench.get(f"{provider.url}/api/state")
    messages = [message for channel in state["slack"] for message in channel["messages"]]
    naming.messages = len(messages)
    for message in messages:
        about = [block for block in message["blocks"] if block["type"] in _NAMING]
        for group in _GROUP.findall(json.dumps([about, message.get("attachments", [])])):
            naming.named.setdefault(group, float(message["ts"]) - since)


def _build_alert(number: int) -> Mapping[str, Any]:
    """One of a service's many keys; each is an incident of its own."""
    service, instance = f"service-{number % _SERVICES:02}", f"group-{number:05}"
    labels = {
        "alertname": "KMSProbeFailing",
        "env": "production",
        "instance": instance,
        "service": service,
        "severity": "warning" if number % _CRITICAL else "critical",
    }
    annotations = {
        "title": f"permission_denied: {service} (production) cannot encrypt with {instance}",
        "summary": f"{service} cannot encrypt with {instance}",
        "description": "Each probe of the last minute failed: the service account lacks the permission to use the key.",
    }
    return {"labels": labels, "annotations": annotations}
