"""Round trips of a prober, each with what the exporter asks after it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from services.exporter.model import ProbeResult
from services.exporter.probes.round_trip import CoalescedProbe, Prober, concerns_connection


@asynccontextmanager
async def coalesced(
    prober: Prober,
    add_result: Callable[[ProbeResult], None] = lambda _: None,
    update_result: Callable[[ProbeResult], None] = lambda _: None,
) -> AsyncIterator[CoalescedProbe]:
    probe = CoalescedProbe(
        prober.service,
        prober.target,
        probe=prober.probe,
        measure_connectivity=partial(prober.measure_connectivity, prober.timeout),
        explain_denial=partial(prober.key.explain_denial, timeout=prober.timeout),
        add_result=add_result,
        update_result=update_result,
        semaphore=asyncio.Semaphore(1),
        min_interval=0.0,
        profile=prober.key.profile,
    )
    try:
        yield probe
    finally:
        await probe.close()


async def probe_and_ask(probe: CoalescedProbe) -> ProbeResult:
    """One round trip; its result has the connectivity that is measured once it was added."""
    result = await probe.run()
    failure = result.calls[-1].failure
    if failure and concerns_connection(failure):
        await probe.measure_connectivity()
    await probe.diagnose()
    return probe.add_connectivity(result)
