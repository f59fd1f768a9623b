"""When a failed delivery is tried again, or that it is not. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from services.relay.send_error import SendError, SendScope


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What the configuration says about retries; all in seconds."""

    backoff_initial: float
    backoff_max: float
    give_up_after: float
    """Since the event was accepted."""


def compute_retry_delay(
    error: SendError, *, attempt: int, age: float, policy: RetryPolicy, random: Callable[[], float]
) -> float | None:
    """In how many seconds to try again, or None: never.

    Full jitter: the wait is anything between 0 and the backoff, which doubles with each attempt, so that what failed
    at the same time is not retried at the same time. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    A channel that is down waits the longest backoff, or as long as the provider asked: only a person can fix it. The
    last attempt is no later than `give_up_after`, except where the provider asked to wait for longer.

    Args:
        error: how the attempt ended.
        attempt: which it was, 1 for the first.
        age: seconds since the event was accepted.
        policy: of the configuration.
        random: gives a number from 0 to 1.
    """
    left = policy.give_up_after - age
    if error.scope is SendScope.MESSAGE or left <= 0:
        return None
    if is_channel_down(error, policy):
        wait = policy.backoff_max
    else:
        doublings = min(attempt - 1, 64)  # beyond, every backoff is at its maximum and a float may overflow
        wait = random() * min(policy.backoff_max, policy.backoff_initial * 2.0**doublings)
    return max(min(wait, left), get_requested_delay(error, policy) or 0.0)


def is_channel_down(error: SendError, policy: RetryPolicy) -> bool:
    """Whether the channel is down until a person acts, or for longer than the longest backoff."""
    too_long = error.retry_after is not None and error.retry_after > policy.backoff_max
    return error.scope is SendScope.CHANNEL or (error.scope is SendScope.ATTEMPT and too_long)


def get_requested_delay(error: SendError, policy: RetryPolicy) -> float | None:
    """Seconds that the provider asked for, `give_up_after` at most: then the delivery is tried once more."""
    return None if error.retry_after is None else min(error.retry_after, policy.give_up_after)
