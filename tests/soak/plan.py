"""A mixed day, compressed: a seed and a length come in, what happens when goes out. Pure.

What ends a process of keypulse comes in the first third, and then a storm, which fills caches and pools. After it all
of them live on, so that a slow growth of their memory shows.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from random import Random
from typing import Final, NamedTuple

from tests.faults.incidents import seeded

MIN_SLOT_SECONDS: Final = 12.0
MAX_SLOT_SECONDS: Final = 60.0
ENDING: Final[Mapping[str, float]] = {
    "relay killed": 0,
    "relay restarted": 0,
    "exporter killed": 0,
    "exporter restarted": 0,
    "backend killed": 0,
    "Alertmanager killed": 0,
    "sender killed": 0,
    "settings reloaded": 0,
}
"""What ends a process; as below. A reload starts another sender.

A killed Alertmanager forgets what it sent: the relay closes such incidents later.
"""
FAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "Slack answers 503": {"provider": "slack", "kind": "status", "status": 503},
    "Slack hangs": {"provider": "slack", "kind": "hang", "seconds": 12},
    "Slack limits the rate": {"provider": "slack", "kind": "rate_limit", "seconds": 5, "count": 20},
    "Slack token revoked": {"provider": "slack", "kind": "error", "error": "token_revoked"},
    "Slack loses answers": {"provider": "slack", "kind": "lost_answer", "count": 20},
    "Slack refuses messages": {
        "provider": "slack",
        "kind": "error",
        "error": "invalid_blocks",
        "method": "chat.postMessage",
        "count": 4,
    },
    "mail answers 451": {"provider": "smtp", "kind": "status", "status": 451},
    "mail loses answers": {"provider": "smtp", "kind": "lost_answer", "count": 20},
    "PagerDuty answers 500": {"provider": "pagerduty", "kind": "status", "status": 500},
    "PagerDuty hangs": {"provider": "pagerduty", "kind": "hang", "seconds": 12},
    "PagerDuty loses answers": {"provider": "pagerduty", "kind": "lost_answer", "count": 20},
}
"""Of the stand-ins, each in force until the step is over."""
OTHERS: Final[Mapping[str, float]] = {
    **dict.fromkeys(FAULTS, 30.0),
    "Prometheus restarted": 0,
    "storm": 40,
    "flaps": 40,
    "data key rotated": 0,
    "data keys wrapped anew": 0,
    "clock ahead": 20,
    "clock behind": 20,
    "disk full": 60,
    "KMS refuses": 30,
}
"""Everything else, with the seconds that it lasts; 0 is a moment."""
ONLY_WITH_SQLITE: Final = frozenset({"clock ahead", "clock behind", "disk full"})
"""With PostgreSQL clock and disk are the server's."""
HINDERS_PAGES: Final = frozenset(
    {
        *("relay killed", "relay restarted", "sender killed", "Prometheus restarted", "Alertmanager killed"),
        *("PagerDuty answers 500", "PagerDuty hangs", "PagerDuty loses answers", "disk full"),
    }
)
"""What a page may have to wait for. All the rest, such as a Slack that hangs, must not hold one up."""


class Step(NamedTuple):
    """Times are seconds since the day began."""

    at: float
    what: str
    seconds: float

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.at:7.1f} s  {self.what}{lasts}"


def build_plan(seed: int, seconds: float, *, sqlite: bool = True) -> list[Step]:
    """Each kind once before any comes again, for as long as the day lasts."""
    random = seeded(seed, "plan")
    others = {what: lasts for what, lasts in OTHERS.items() if sqlite or what not in ONLY_WITH_SQLITE}
    kinds = len(ENDING) + len(others)
    slot = min(max(seconds / kinds, MIN_SLOT_SECONDS), MAX_SLOT_SECONDS)
    count = max(int(seconds / slot), 1)
    ending = min(count // 3, len(ENDING) * max(count // kinds, 1))
    later = [*islice(_rounds(random, others), count - ending)]
    if "storm" in later:
        later.remove("storm")
        later.insert(0, "storm")
    names = [*islice(_rounds(random, ENDING), ending), *later]
    steps = []
    for number, name in enumerate(names):
        longest = seconds / 10 if name == "disk full" else 0.7 * slot
        lasts = min({**ENDING, **others}[name], longest)
        steps.append(Step(round((number + random.uniform(0, 0.2)) * slot, 1), name, round(lasts, 1)))
    return steps


def _rounds(random: Random, kinds: Mapping[str, float]) -> Iterator[str]:
    while True:
        yield from random.sample(list(kinds), len(kinds))
