"""What a probe did, step by step, for a person who reads it in a terminal. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from services.exporter.demand import Demand
from services.exporter.model import Call, Operation, ProbeResult
from services.exporter.web import advice
from shared.kms.provider import Phase
from shared.kms.reason import Reason

SENTENCE: Final = 500
"""Characters shown of what a service said."""
_RIGHT: Final = {
    Operation.ENCRYPT: "right: plaintext and AAD arrived by their CRC32C, and the ciphertext matches its own",
    Operation.DECRYPT: "right: the plaintext matches its CRC32C, and is the one that was encrypted",
}


def told(demand: Demand, result: ProbeResult | None, way: Sequence[Phase], waited: float) -> str:
    """The steps, a line each.

    Args:
        demand: whose they are.
        result: None where it had not come after `waited` seconds.
        way: empty where it was not measured.
        waited: seconds.
    """
    return "\n".join(_lines(demand, result, way, waited))


def printable(text: str, length: int = SENTENCE) -> str:
    """One line that moves no terminal's cursor, cut to `length` characters."""
    cut = text if len(text) <= length else f"{text[:length]}…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


def _lines(demand: Demand, result: ProbeResult | None, way: Sequence[Phase], waited: float) -> Iterator[str]:
    yield f"Probe of {printable(demand.target)}, service {printable(demand.service)}"
    if result is None:
        yield f"It had not ended after {waited:g} s: timeout. It goes on, and is counted at /metrics when it ends."
    else:
        yield f"It ended at {datetime.fromtimestamp(result.at, UTC).isoformat(timespec='milliseconds')}."
        yield ""
        yield "The calls:"
        for call in result.calls:
            yield _step(call.operation, call.seconds, _outcome(call))
        version = printable(result.key_version) if result.key_version else "none"
        yield f"  key version that encrypted: {version}"
        yield f"  protection level: {printable(result.protection_level or 'not known')}"
    yield ""
    yield "The way to KMS, on a connection of its own:"
    for phase in way:
        yield _step(phase.name, phase.seconds, printable(phase.failure or "right"))
    if not way:
        yield "  not measured: no time was left"
    if result is not None:
        yield _step("first call", result.calls[0].seconds, "on the connection of the probes")
        yield from _what_to_do(result, way)
    yield ""
    yield "What a scrape gets:"


def _what_to_do(result: ProbeResult, way: Sequence[Phase]) -> Iterator[str]:
    failure = result.failed.failure if result.failed else None
    if failure is None:
        return
    yield ""
    if failure.reason in (Reason.TIMEOUT, Reason.UNAVAILABLE) and (sentence := advice.of_the_way(way)):
        yield printable(sentence)
    yield advice.BY_REASON[failure.reason].sentence


def _outcome(call: Call) -> str:
    if call.failure is None:
        return _RIGHT[call.operation]
    return f"{call.failure.reason}: {printable(call.failure.detail)}"


def _step(name: str, seconds: float, outcome: str) -> str:
    return f"  {name:<10}  {seconds:9.4f} s  {outcome}"
