"""What a probe did, step by step, for a person who reads it in a terminal. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from services.exporter.demand import CoalescedProbe
from services.exporter.model import Call, Operation, ProbeResult
from services.exporter.web import advice
from shared.kms.provider import ConnectivityPhase
from shared.kms.reason import Reason

MAX_TEXT_LENGTH: Final = 500
"""Characters shown of what a service said."""
_SUCCESS_TEXTS: Final = {
    Operation.ENCRYPT: "right: plaintext and AAD arrived by their CRC32C, and the ciphertext matches its own",
    Operation.DECRYPT: "right: the plaintext matches its CRC32C, and is the one that was encrypted",
}


def format_probe(probe: CoalescedProbe, result: ProbeResult | None, connectivity: Sequence[ConnectivityPhase], waited_seconds: float) -> str:
    """The steps, a line each.

    Args:
        probe: whose they are.
        result: None where it had not come after `waited_seconds` seconds.
        connectivity: empty where it was not measured.
        waited_seconds: seconds.
    """
    return "\n".join(_format_lines(probe, result, connectivity, waited_seconds))


def make_printable(text: str, length: int = MAX_TEXT_LENGTH) -> str:
    """One line that moves no terminal's cursor, cut to `length` characters."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


def _format_lines(probe: CoalescedProbe, result: ProbeResult | None, connectivity: Sequence[ConnectivityPhase], waited_seconds: float) -> Iterator[str]:
    yield f"Probe of {make_printable(probe.target)}, service {make_printable(probe.service)}"
    if result is None:
        yield f"It had not ended after {waited_seconds:g} s: timeout. It goes on, and is counted at /metrics when it ends."
    else:
        yield f"It ended at {datetime.fromtimestamp(result.ended_at, UTC).isoformat(timespec='milliseconds')}."
        yield ""
        yield "The calls:"
        for call in result.calls:
            yield _format_step(call.operation, call.seconds, _format_outcome(call))
        version = make_printable(result.key_version) if result.key_version else "none"
        yield f"  key version that encrypted: {version}"
        yield f"  protection level: {make_printable(result.protection_level or 'not known')}"
    yield ""
    yield "The way to KMS, on a connection of its own:"
    for phase in connectivity:
        yield _format_step(phase.name, phase.seconds, make_printable(phase.error or "right"))
    if not connectivity:
        yield "  not measured: no time was left"
    if result is not None:
        yield _format_step("first call", result.calls[0].seconds, "on the connection of the probes")
        yield from _format_advice(result, connectivity)
    yield ""
    yield "What a scrape gets:"


def _format_advice(result: ProbeResult, connectivity: Sequence[ConnectivityPhase]) -> Iterator[str]:
    failure = result.failed_call.failure if result.failed_call else None
    if failure is None:
        return
    yield ""
    if failure.reason in (Reason.TIMEOUT, Reason.UNAVAILABLE) and (sentence := advice.describe_connectivity(connectivity)):
        yield make_printable(sentence)
    yield advice.REASON_ADVICE[failure.reason].text


def _format_outcome(call: Call) -> str:
    if call.failure is None:
        return _SUCCESS_TEXTS[call.operation]
    return f"{call.failure.reason}: {make_printable(call.failure.detail)}"


def _format_step(name: str, seconds: float, outcome: str) -> str:
    return f"  {name:<10}  {seconds:9.4f} s  {outcome}"
