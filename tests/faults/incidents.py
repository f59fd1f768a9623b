"""Made-up incidents: seeded randomness and lengths come in, the webhooks that Alertmanager would send go out. Pure.

Each alert's summary says which alert it is, in which webhook it last changed and to what. So what a message shows
can be read in any medium, whatever else stands around it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

from tests.relay.delivery_oracle.evidence import Alerts, AlertState

RECEIVER = "faults"
ALERTS = 4
"""In one group, at most."""
_ALERT = re.compile(r"\bg(\d+) a(\d+) v(\d+) (firing|resolved)\b")
_START = datetime(2026, 1, 1, tzinfo=UTC)


class Alert(NamedTuple):
    """Which alert."""

    group: int
    number: int


@dataclass(frozen=True)
class Webhook:
    """The state of one group; at least one of its alerts has just changed."""

    group: int
    number: int
    body: bytes


def seeded(*seed: object) -> Random:
    """The same numbers for the same words."""
    return Random(" ".join(map(str, seed)))  # noqa: S311  # no secret comes of it


def read_alerts(text: str) -> Alerts:
    """The alerts that a text shows, and their states."""
    found = _ALERT.findall(text)
    return frozenset((Alert(int(g), int(a)), AlertState(int(version), state)) for g, a, version, state in found)


def read_group(alerts: Alerts) -> int:
    """The group of what a message shows; 0 if it shows nothing."""
    return min((alert.group for alert, _ in alerts if isinstance(alert, Alert)), default=0)


def history(random: Random, group: int, length: int) -> Iterator[Webhook]:
    """What happens to one group: alerts begin, end and begin again. It starts with one that fires."""
    firing: dict[int, int] = {}
    """Since which webhook."""
    for number in range(1, length + 1):
        ended: dict[int, int] = {}
        quiet = [alert for alert in range(ALERTS) if alert not in firing]
        if firing and (not quiet or random.random() < 0.5):
            over = list(firing) if random.random() < 0.5 else random.sample(list(firing), 1)
            ended = {alert: firing.pop(alert) for alert in over}
        else:
            firing[random.choice(quiet)] = number
        # Alertmanager forgets a resolved alert once it has been told.
        alerts = [_alert(group, alert, since, None) for alert, since in firing.items()]
        alerts += [_alert(group, alert, since, number) for alert, since in ended.items()]
        yield Webhook(group, number, _body(group, alerts, "firing" if firing else "resolved"))


def _alert(group: int, alert: int, since: int, until: int | None) -> dict[str, object]:
    state = "firing" if until is None else "resolved"
    return {
        "status": state,
        "labels": {**_labels(group), "instance": str(alert), "severity": "critical"},
        "annotations": {"summary": f"g{group} a{alert} v{until or since} {state}"},
        "startsAt": _moment(since),
        "endsAt": "0001-01-01T00:00:00Z" if until is None else _moment(until),
        "generatorURL": "",
        "fingerprint": f"{group:08x}{alert:08x}",
    }


def _body(group: int, alerts: list[dict[str, object]], status: str) -> bytes:
    labels = _labels(group)
    webhook = {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{labels["alertname"]}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": RECEIVER,
        "groupLabels": labels,
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.org",
        "alerts": alerts,
    }
    return json.dumps(webhook).encode()


def _labels(group: int) -> dict[str, str]:
    return {"alertname": f"Fault{group}"}


def _moment(number: int) -> str:
    return (_START + timedelta(seconds=number)).isoformat().replace("+00:00", "Z")
