"""Why a delivery was late, from what the outbox has of it. Pure.

Nothing is claimed beyond what is stored: where no attempt on the channel explains a wait, its cause is unknown.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from services.relay.outbox.queries.slow_deliveries import MAX_COUNTED, MIN_WAIT, SlowDelivery
from services.relay.send_error import SendReason
from services.relay.text import format_seconds

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
    """Nothing was delivered on the channel meanwhile, and no attempt failed: no relay may have run."""


class Delay(NamedTuple):
    """Why it took so long."""

    cause: DelayCause
    why: str
    """One sentence, without a full stop; the provider's words are not in it."""


_Explain = Callable[[SlowDelivery, str], Delay]
"""Of a delivery, and how long a part of its delay was."""


def explain_delay(delivery: SlowDelivery) -> Delay:
    """What took the time of a delivery, the larger part first."""
    attempting = delivery.seconds - delivery.waited
    parts: list[tuple[float, _Explain]] = [(attempting, _explain_attempts)]
    if delivery.is_restored:
        parts.append((delivery.waited, _explain_restore))
    elif delivery.waited >= MIN_WAIT:
        parts += [(delivery.blocked, _explain_block), (delivery.waited - delivery.blocked, _explain_queue)]
    parts.sort(key=lambda part: -part[0])
    delays = [
        explain(delivery, format_seconds(seconds))
        for number, (seconds, explain) in enumerate(parts)
        if number == 0 or seconds >= _SHARE * delivery.seconds
    ]
    return Delay(delays[0].cause, "; ".join(delay.why for delay in delays))


def _explain_restore(_delivery: SlowDelivery, waited: str) -> Delay:
    return Delay(DelayCause.RESTORED_BACKUP, f"waited {waited} after a backup was restored")


def _explain_block(delivery: SlowDelivery, waited: str) -> Delay:
    failures = delivery.other_failures
    if not failures:
        return Delay(DelayCause.UNKNOWN, f"waited {waited}; nothing was delivered on the channel, no reason is stored")
    limited = failures.get(SendReason.RATE_LIMITED, 0) * 2 > sum(failures.values())
    cause = DelayCause.RATE_LIMIT if limited else DelayCause.CIRCUIT_BREAKER
    return Delay(cause, f"waited {waited} while other messages failed on the channel: {_format_counts(failures)}")


def _explain_queue(delivery: SlowDelivery, waited: str) -> Delay:
    count = delivery.others_delivered
    ahead = f"{count} or more other messages" if count >= MAX_COUNTED else f"{count} other message{'s'[: count != 1]}"
    digest = "; a digest delivered it" if delivery.is_digest else ""
    return Delay(DelayCause.RATE_LIMIT, f"waited {waited} for the rate limit, behind {ahead}{digest}")


def _explain_attempts(delivery: SlowDelivery, attempting: str) -> Delay:
    failures = Counter(each.reason for each in delivery.attempts if each.reason != SendReason.OK)
    if not failures:
        return Delay(DelayCause.PROVIDER, f"the provider took {attempting} to answer")
    summary = (
        f"{failures.total()} of {len(delivery.attempts)} attempts failed in {attempting}: {_format_counts(failures)}"
    )
    limited = failures[SendReason.RATE_LIMITED] * 2 > failures.total()
    return Delay(DelayCause.RATE_LIMIT if limited else DelayCause.PROVIDER, summary)


def _format_counts(failures: Mapping[str, int]) -> str:
    """`timeout (3), server_error`, the most frequent first."""
    listed = sorted(failures.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(reason if count == 1 else f"{reason} ({count})" for reason, count in listed)
