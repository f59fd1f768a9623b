"""`GET /probe?target=NAME`, as blackbox_exporter has it: a probe of that target → its metrics, or its steps in words.

Only targets of the configuration are probed. A probe that takes longer than the caller waits goes on, and is counted at
`/metrics` as every other.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.exporter.demand import ClosedError, Demand
from services.exporter.model import ProbeResult
from services.exporter.web import steps
from shared.guard import GuardedRoute, Requires
from shared.kms.provider import Phase
from shared.kms.reason import Reason
from shared.server import encoder
from shared.settings import Role

SCRAPE_TIMEOUT: Final = "X-Prometheus-Scrape-Timeout-Seconds"
"""The header in which Prometheus says how long it waits."""
OFFSET: Final = 0.5
"""Seconds of it that are left for the answer's way, as blackbox_exporter leaves them."""
LONGEST: Final = 120.0
"""Seconds that nobody waits longer; blackbox_exporter's bound where the header is missing."""
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_METRICS: Final = Requires(Role.VIEWER, public=True, acts=True)
_STEPS: Final = Requires(Role.VIEWER, acts=True, browser=True)


def route(demands: Callable[[], Mapping[str, Demand]]) -> GuardedRoute:
    """The page. Its metrics need no token, as at `/metrics`; its steps do.

    Args:
        demands: the targets that are watched now, by name.
    """

    async def answer(request: Request) -> Response:
        if request.method != "GET":  # a HEAD must not cost a probe
            return PlainTextResponse("only GET\n", status_code=405, headers={"Allow": "GET"})
        response = await _answer(request, demands(), debug=_debug(request))
        response.headers.update(_HEADERS)
        return response

    return GuardedRoute("/probe", answer, lambda request: _STEPS if _debug(request) else _METRICS)


def _debug(request: Request) -> bool:
    return request.query_params.get("debug") == "true"


async def _answer(request: Request, demands: Mapping[str, Demand], *, debug: bool) -> Response:
    names = request.query_params.getlist("target")
    if len(names) != 1 or not names[0]:
        return PlainTextResponse("say which target, once: /probe?target=NAME\n", status_code=400)
    demand = demands.get(names[0])
    if demand is None:
        told = f"there is no target {steps.printable(names[0], 100)}; the board at / lists all of them\n"
        return PlainTextResponse(told, status_code=404)
    seconds = _seconds(request.headers.get(SCRAPE_TIMEOUT, ""))
    if seconds <= 0:
        told = f"{SCRAPE_TIMEOUT} has to be over {OFFSET:g}: set a longer scrape_timeout in Prometheus\n"
        return PlainTextResponse(told, status_code=400)
    try:
        probed = await _Probed.of(demand, seconds, debug=debug)
    except (ClosedError, _BusyError) as error:
        return PlainTextResponse(f"{error}\n", status_code=503)
    if debug:
        metrics = generate_latest(probed).decode()
        return PlainTextResponse(f"{steps.told(demand, probed.result, probed.way, seconds)}\n{metrics}")
    encode, content_type = encoder(request.headers.get("accept", ""))
    return Response(encode(probed), headers={"content-type": content_type})


def _seconds(header: str) -> float:
    """How long the caller can be let wait; a header that is no number counts as missing."""
    try:
        given = float(header)
    except ValueError:
        return LONGEST
    return min(given - OFFSET, LONGEST) if math.isfinite(given) else LONGEST


class _BusyError(Exception):
    """The probe could not be made in time, and KMS is not to blame."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"for most of {seconds:g} s no place was free for this probe: others of its endpoint took all of them; "
            "/metrics says how they went. Raise probe.concurrency, or wait longer"
        )


class _Probed(Collector):
    """What one probe found, as metrics of its own."""

    def __init__(self, result: ProbeResult | None, way: tuple[Phase, ...], waited: float) -> None:
        self.result = result
        self.way = way
        self._waited = waited

    @classmethod
    async def of(cls, demand: Demand, seconds: float, *, debug: bool) -> "_Probed":
        """Waits so many `seconds` for a probe, and for a look at its way where that is wanted.

        Raises ClosedError, or _BusyError where the probe was given its place too late to say anything of KMS.
        """
        late = asyncio.get_running_loop().time() + seconds / 2
        result: ProbeResult | None = None
        way: tuple[Phase, ...] = ()
        try:
            async with asyncio.timeout(seconds):
                result = await demand.recent()
                way = result.way
                if debug and not way:
                    way = await demand.way()
        except TimeoutError:  # what is missing says it
            if result is None and (demand.began is None or demand.began > late):
                raise _BusyError(seconds) from None
        return cls(result, way, seconds)

    def collect(self) -> Iterable[Metric]:
        """The families; those of which nothing is known have no sample."""
        result = self.result
        call = result.failed if result else None
        reason = Reason.TIMEOUT if result is None else call.failure.reason if call and call.failure else None
        calls = result.calls if result else ()
        yield _gauge("probe_success", "1 if the round trip was right in every respect.", float(reason is None))
        yield _gauge(
            "probe_duration_seconds",
            "Duration of the round trip; of the wait, where it had not ended.",
            sum(call.seconds for call in calls) if result else self._waited,
        )
        reasons = GaugeMetricFamily("probe_failure_reason", "1 for why it was not right.", labels=["reason"])
        for known in Reason:
            reasons.add_metric([known], float(known is reason))
        yield reasons
        operations = GaugeMetricFamily(
            "probe_operation_duration_seconds", "Duration of each call that was made.", labels=["operation"]
        )
        for call in calls:
            operations.add_metric([call.operation], call.seconds)
        yield operations
        phases = GaugeMetricFamily(
            "probe_phase_duration_seconds", "Duration of each step on the way, where it was measured.", labels=["phase"]
        )
        for phase in self.way:
            phases.add_metric([phase.name], phase.seconds)
        yield phases
        number = (result.key_version or "").rpartition("/")[2] if result else ""
        yield _gauge(
            "probe_key_version", "Number of the version that encrypted.", int(number) if number.isdecimal() else None
        )
        yield _gauge("probe_timestamp_seconds", "Unix time of the round trip's end.", result.at if result else None)


def _gauge(name: str, explained: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, explained, value=value)
