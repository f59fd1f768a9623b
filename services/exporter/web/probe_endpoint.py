"""`GET /probe?target=NAME`, as blackbox_exporter has it: a probe of that target → its metrics, or its steps as text.

Only configured targets are probed. A probe that takes longer than the caller waits continues, and is counted at
`/metrics` as every other.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.exporter.model import Call, Operation, ProbeResult
from services.exporter.probes.round_trip import CoalescedProbe, ProbeClosedError, concerns_connection
from services.exporter.web import findings
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.server import select_encoder
from shared.kms.fixes import KmsProfile
from shared.kms.port import ConnectivityPhase, Diagnosis
from shared.kms.reason import Reason

MAX_TEXT_LENGTH: Final = 500
"""Characters shown of what a service said."""
_CHECKSUM_TEXTS: Final = {
    Operation.ENCRYPT: "the checksums of plaintext, AAD and ciphertext match",
    Operation.DECRYPT: "the checksum matches",
}
"""Of a provider that has them."""


def make_printable(text: str, length: int = MAX_TEXT_LENGTH) -> str:
    """One line that moves no terminal's cursor, cut to `length` characters."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


def _format_lines(probe: CoalescedProbe, metrics: "_ProbeMetrics") -> Iterator[str]:
    result, connectivity, diagnosis = metrics.result, metrics.connectivity, metrics.diagnosis
    yield f"Probe of {make_printable(probe.target)}, service {make_printable(probe.service)}"
    if result is None:
        yield f"It had not ended after {metrics.waited_seconds:g} s: timeout. It continues, and counts at /metrics."
    else:
        yield f"It ended at {datetime.fromtimestamp(result.ended_at, UTC).isoformat(timespec='milliseconds')}."
        yield ""
        yield "The calls:"
        for call in result.calls:
            yield _format_step(call.operation, call.seconds, _format_outcome(call, probe.profile))
        version = make_printable(result.key_version) if result.key_version else "none"
        yield f"  key version that encrypted: {version}"
        yield f"  protection level: {make_printable(result.protection_level or 'not known')}"
    yield ""
    yield "A new connection to KMS:"
    for phase in connectivity:
        yield _format_step(phase.name, phase.seconds, make_printable(phase.error or "ok"))
    if not connectivity:
        yield "  not measured: no time was left, or this provider measures nothing"
    if result is not None:
        yield _format_step("first call", result.calls[0].seconds, "on the connection of the probes")
        if diagnosis:
            yield from _format_diagnosis(diagnosis, probe.profile)
        yield from _format_advice(result, connectivity, diagnosis, probe.profile)
    yield ""
    yield "What a scrape gets:"


def _format_diagnosis(diagnosis: Diagnosis, profile: KmsProfile) -> Iterator[str]:
    yield ""
    yield f"{profile.service_name} does not say why. What harmless calls show, asked at most once a minute:"
    for answer in diagnosis.answers:
        yield f"  {answer.question:<16}  {make_printable(answer.text)}"
    yield f"  so it is: {make_printable(f'{diagnosis.cause}: {diagnosis.text}' if diagnosis.cause else diagnosis.text)}"


def _format_advice(
    result: ProbeResult, connectivity: Sequence[ConnectivityPhase], diagnosis: Diagnosis | None, profile: KmsProfile
) -> Iterator[str]:
    failure = result.failed_call.failure if result.failed_call else None
    if failure is None:
        return
    yield ""
    if concerns_connection(failure) and (sentence := findings.describe_connectivity(connectivity, failure.cause)):
        yield make_printable(sentence)
    yield profile.advise(failure.reason, diagnosis.cause if diagnosis else failure.cause)


def _format_outcome(call: Call, profile: KmsProfile) -> str:
    if call.failure is None:
        found = [_CHECKSUM_TEXTS[call.operation]] if profile.has_checksums else []
        found += ["the plaintext is the one that was encrypted"] if call.operation is Operation.DECRYPT else []
        return f"ok: {', and '.join(found)}" if found else "ok"
    return f"{call.failure.label}: {make_printable(call.failure.detail)}"


def _format_step(name: str, seconds: float, outcome: str) -> str:
    return f"  {name:<10}  {seconds:9.4f} s  {outcome}"


SCRAPE_TIMEOUT_HEADER: Final = "X-Prometheus-Scrape-Timeout-Seconds"
"""The header in which Prometheus says how long it waits."""
TIMEOUT_OFFSET: Final = 0.5
"""Seconds of it that are left to send the answer, as blackbox_exporter leaves them."""
MAX_TIMEOUT: Final = 120.0
"""Seconds that nobody waits longer; blackbox_exporter's bound where the header is missing."""
_MAX_MEASUREMENT_WAIT: Final = 20.0
"""Seconds that the steps wait for a new connection; where a thousand keys hang, its turn comes minutes later."""
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_METRICS_ACCESS: Final = RouteRequirements(Role.VIEWER, is_public=True, has_side_effects=True)
_DEBUG_ACCESS: Final = RouteRequirements(Role.VIEWER, has_side_effects=True, challenges_browser=True)


def build_route(get_probes: Callable[[], Mapping[str, CoalescedProbe]]) -> ProtectedRoute:
    """The page. Its metrics need no token, as at `/metrics`; its steps do.

    Args:
        get_probes: the targets that are watched now, by name.
    """

    async def answer(request: Request) -> Response:
        if request.method != "GET":  # a HEAD must not cost a probe
            return PlainTextResponse("only GET\n", status_code=405, headers={"Allow": "GET"})
        response = await _respond(request, get_probes(), debug=_is_debug(request))
        response.headers.update(_HEADERS)
        return response

    return ProtectedRoute("/probe", answer, lambda request: _DEBUG_ACCESS if _is_debug(request) else _METRICS_ACCESS)


def _is_debug(request: Request) -> bool:
    return request.query_params.get("debug") == "true"


async def _respond(request: Request, probes: Mapping[str, CoalescedProbe], *, debug: bool) -> Response:
    names = request.query_params.getlist("target")
    if len(names) != 1 or not names[0]:
        return PlainTextResponse("say which target, once: /probe?target=NAME\n", status_code=400)
    probe = probes.get(names[0])
    if probe is None:
        message = f"there is no target {make_printable(names[0], 100)}; the board at / lists all of them\n"
        return PlainTextResponse(message, status_code=404)
    seconds = _parse_timeout(request.headers.get(SCRAPE_TIMEOUT_HEADER, ""))
    if seconds <= 0:
        message = (
            f"{SCRAPE_TIMEOUT_HEADER} has to be over {TIMEOUT_OFFSET:g}: set a longer scrape_timeout in Prometheus\n"
        )
        return PlainTextResponse(message, status_code=400)
    try:
        probe_metrics = await _ProbeMetrics.wait_for(probe, seconds, debug=debug)
    except (ProbeClosedError, _BusyError) as error:
        return PlainTextResponse(f"{error}\n", status_code=503)
    if debug:
        metrics = generate_latest(probe_metrics).decode()
        return PlainTextResponse("\n".join([*_format_lines(probe, probe_metrics), metrics]))
    encode, content_type = select_encoder(request.headers.get("accept", ""))
    return Response(encode(probe_metrics), headers={"content-type": content_type})


def _parse_timeout(header: str) -> float:
    """How long the caller can be let wait; a header that is no number counts as missing."""
    try:
        seconds = float(header)
    except ValueError:
        return MAX_TIMEOUT
    return min(seconds - TIMEOUT_OFFSET, MAX_TIMEOUT) if math.isfinite(seconds) else MAX_TIMEOUT


class _BusyError(Exception):
    """The probe could not be made in time, and KMS is not to blame."""


@dataclass
class _ProbeMetrics(Collector):
    """What one probe found, as metrics of its own."""

    result: ProbeResult | None
    connectivity: tuple[ConnectivityPhase, ...]
    diagnosis: Diagnosis | None
    waited_seconds: float

    @classmethod
    async def wait_for(cls, probe: CoalescedProbe, seconds: float, *, debug: bool) -> "_ProbeMetrics":
        """Waits up to `seconds` for a probe and, with `debug`, for its connectivity and for why it was denied.

        Raises ProbeClosedError, or _BusyError if the probe began too late to say anything about KMS.
        """
        start_deadline = asyncio.get_running_loop().time() + seconds / 2
        result: ProbeResult | None = None
        connectivity: tuple[ConnectivityPhase, ...] = ()
        diagnosis: Diagnosis | None = None
        try:
            async with asyncio.timeout(seconds):
                result = await probe.run_or_reuse()
                connectivity = result.connectivity
                if debug:
                    with suppress(TimeoutError):  # others come first: what earlier failures share is shown
                        async with asyncio.timeout(_MAX_MEASUREMENT_WAIT):
                            connectivity = await probe.measure_connectivity()
                    result = probe.add_connectivity(result)
                    diagnosis = await probe.diagnose()
        except TimeoutError:  # what is missing says it
            if result is None and (probe.started_at is None or probe.started_at > start_deadline):
                raise _BusyError(
                    f"for most of {seconds:g} s no place was free for this probe: others of its endpoint took all of "
                    "them; /metrics says how they went. Raise probe.concurrency, or wait longer"
                ) from None
        return cls(result, connectivity, diagnosis, seconds)

    def collect(self) -> Iterable[Metric]:
        """The families; those of which nothing is known have no sample."""
        result = self.result
        call = result.failed_call if result else None
        reason = Reason.TIMEOUT if result is None else call.failure.reason if call and call.failure else None
        calls = result.calls if result else ()
        yield GaugeMetricFamily("probe_success", "1 if the round trip succeeded.", float(reason is None))
        yield GaugeMetricFamily(
            "probe_duration_seconds",
            "Duration of the round trip; of the wait, where it had not ended.",
            sum(call.seconds for call in calls) if result else self.waited_seconds,
        )
        reasons = GaugeMetricFamily("probe_failure_reason", "1 for the reason why it failed.", labels=["reason"])
        for each in Reason:
            reasons.add_metric([each], float(each is reason))
        yield reasons
        operations = GaugeMetricFamily(
            "probe_operation_duration_seconds", "Duration of each call that was made.", labels=["operation"]
        )
        for call in calls:
            operations.add_metric([call.operation], call.seconds)
        yield operations
        phases = GaugeMetricFamily(
            "probe_phase_duration_seconds",
            "Duration of each phase of a new connection.",
            labels=["phase"],
        )
        for phase in self.connectivity:
            phases.add_metric([phase.name], phase.seconds)
        yield phases
        yield GaugeMetricFamily(
            "probe_key_version",
            "Number of the version that encrypted; absent where the provider does not number versions.",
            result.key_version_number if result else None,
        )
        yield GaugeMetricFamily(
            "probe_timestamp_seconds", "Unix time of the round trip's end.", result.ended_at if result else None
        )
