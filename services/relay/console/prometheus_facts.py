"""What Prometheus knows of the path before the relay: whether the exporter is scraped and the rules are evaluated."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.relay.prometheus_api import PrometheusClient, PrometheusError, RuleGroup

EXPORTER_JOB: Final = "keypulse-exporter"
"""The job that scrapes the exporter; our rules and dashboards name it, too."""
_SCRAPES: Final = f'timestamp(up{{job="{EXPORTER_JOB}"}}) * up{{job="{EXPORTER_JOB}"}} or vector(time())'
"""When each exporter was last scraped, 0 for one that cannot be; and, without labels, Prometheus's own time."""
_TIMEOUT: Final = 8.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """The last scrape of one exporter."""

    instance: str
    at: float | None
    """When, unix seconds by the relay's clock; None if it failed."""


@dataclass(frozen=True, slots=True)
class PrometheusFacts:
    """An answer of Prometheus, or why there is none."""

    error: str = ""
    scrapes: Sequence[Scrape] = ()
    groups: Sequence[RuleGroup] = ()
    """Those that have alerting rules; `evaluated_at` is by the relay's clock."""


async def ask_prometheus(client: PrometheusClient, clock: Callable[[], float]) -> PrometheusFacts:
    """Ask it both, in 8 s at most."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            samples, groups = await asyncio.gather(client.read_instant(_SCRAPES), client.list_rule_groups())
    except PrometheusError as error:
        return PrometheusFacts(error=str(error))
    except TimeoutError:
        return PrometheusFacts(error=f"no answer within {_TIMEOUT:g} s")
    # Ages are what counts: Prometheus's clock may differ from that of the relay.
    offset = clock() - max((sample.at for sample in samples), default=clock())
    return PrometheusFacts(
        scrapes=[
            Scrape(sample.labels.get("instance", "?"), sample.value + offset if sample.value else None)
            for sample in samples
            if sample.labels
        ],
        groups=[
            replace(group, evaluated_at=None if group.evaluated_at is None else group.evaluated_at + offset)
            for group in groups
        ],
    )
