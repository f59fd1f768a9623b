"""When a failed attempt is tried again, or that it never is. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from services.relay.channels.channel import Scope, SendError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a person set; all in seconds."""

    backoff_initial: float
    backoff_max: float
    give_up_after: float
    """Since the event was accepted."""


def next_attempt(
    error: SendError,
    *,
    attempt: int,
    accepted_at: float,
    now: float,
    policy: RetryPolicy,
    random: Callable[[], float],
) -> float | None:
    """When to try again (unix seconds), or None: never.

    Full jitter: the wait is anything between 0 and the backoff, which doubles with each attempt, so that what failed
    together does not come back together. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    An error of the channel waits the longest backoff: only a person can end it. The last attempt is no later than
    `give_up_after`, except where the provider asked to wait for longer.

    Args:
        error: how the attempt ended.
        attempt: which it was, 1 for the first.
        accepted_at: when the event was accepted, unix seconds.
        now: unix seconds.
        policy: what a person set.
        random: gives a number from 0 to 1.
    """
    gives_up_at = accepted_at + policy.give_up_after
    if error.scope is Scope.MESSAGE or now >= gives_up_at:
        return None
    if error.scope is Scope.CHANNEL:
        wait = policy.backoff_max
    else:
        doublings = min(attempt - 1, 64)  # beyond, every backoff is at its maximum and a float may overflow
        wait = random() * min(policy.backoff_max, policy.backoff_initial * 2.0**doublings)
    # A provider that asks for a year is asked once more, and given up then.
    asked = min(error.retry_after or 0.0, policy.give_up_after)
    return max(min(now + wait, gives_up_at), now + asked)
