"""Why a delivery was late, from what the outbox has of it. Pure.

Nothing is claimed beyond what is stored: where no attempt on the channel explains a wait, its cause is unknown.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from services.relay.outbox.slow_deliveries import MAX_COUNTED, SlowDelivery
from services.relay.send_error import SendReason
from services.relay.text.times import format_duration

_SHARE: Final = 0.2
"""A part of the whole time below which nothing is said of it."""


class DelayCause(StrEnum):
    """What took most of the time."""

    PROVIDER = "provider"
    """Its attempts failed, or its provider answered slowly."""
    RATE_LIMIT = "rate_limit"
    """Of the channel, or of its provider."""
    CIRCUIT_BREAKER = "circuit_breaker"
    """Other messages had failed on the channel, so it was not tried."""
    RESTORED_BACKUP = "restored_backup"
    """It waited for the comparison with Alertmanager."""
    UNKNOWN = "unknown"
    """There was no attempt on the channel: no relay may have run."""


class Delay(NamedTuple):
    """Why it took so long."""

    cause: DelayCause
    why: str
    """One sentence, without a full stop; the provider's words are not in it."""


def explain_delay(delivery: SlowDelivery) -> Delay:
    """What took the time of a delivery, the larger part first."""
    waited, trying = delivery.waited, delivery.seconds - delivery.waited
    parts: list[tuple[float, Delay]] = []
    if waited >= _SHARE * delivery.seconds:
        parts.append((waited, _explain_wait(delivery, _format_seconds(waited))))
    if trying >= _SHARE * delivery.seconds and delivery.attempts:
        parts.append((trying, _explain_attempts(delivery, _format_seconds(trying))))
    parts.sort(key=lambda part: -part[0])
    return Delay(parts[0][1].cause, "; ".join(delay.why for _, delay in parts))


def _explain_wait(delivery: SlowDelivery, waited: str) -> Delay:
    if delivery.is_restored:
        return Delay(DelayCause.RESTORED_BACKUP, f"waited {waited} after a backup was restored")
    if delivery.other_failures:
        failures = _format_counts(delivery.other_failures)
        return Delay(
            DelayCause.CIRCUIT_BREAKER, f"waited {waited} while other messages failed on the channel: {failures}"
        )
    if delivery.others_delivered or delivery.is_digest:
        count = delivery.others_delivered
        ahead = f"{count if count < MAX_COUNTED else f'{count} or more'} other messages went first"
        digest = "a digest delivered it" if delivery.is_digest else None
        parts = [ahead if count else None, digest]
        return Delay(DelayCause.RATE_LIMIT, f"waited {waited} for the rate limit: {', '.join(filter(None, parts))}")
    return Delay(DelayCause.UNKNOWN, f"waited {waited}, without an attempt on the channel")


def _explain_attempts(delivery: SlowDelivery, trying: str) -> Delay:
    failures = Counter(each.reason for each in delivery.attempts if each.reason != SendReason.OK)
    if not failures:
        return Delay(DelayCause.PROVIDER, f"the provider took {trying} to answer")
    tried = f"{failures.total()} of {len(delivery.attempts)} attempts failed in {trying}: {_format_counts(failures)}"
    limited = failures[SendReason.RATE_LIMITED] * 2 > failures.total()
    return Delay(DelayCause.RATE_LIMIT if limited else DelayCause.PROVIDER, tried)


def _format_counts(failures: Mapping[str, int]) -> str:
    """`timeout (3), server_error`, the most frequent first."""
    listed = sorted(failures.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(reason if count == 1 else f"{reason} ({count})" for reason, count in listed)


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(timedelta(seconds=seconds))
