"""When a failed attempt is tried again, and when its delivery is given up."""

from collections.abc import Callable

from services.relay.channels.port import SendError, SendScope
from services.relay.config import DeliverySettings


def compute_retry_delay(
    error: SendError, *, attempt: int, age: float, settings: DeliverySettings, random: Callable[[], float]
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
        settings: of the configuration.
        random: gives a number from 0 to 1.
    """
    left = settings.give_up_after - age
    if error.scope is SendScope.MESSAGE or left <= 0:
        return None
    if is_channel_down(error, settings):
        wait = settings.backoff_max
    else:
        doublings = min(attempt - 1, 64)  # beyond, every backoff is at its maximum and a float may overflow
        wait = random() * min(settings.backoff_max, settings.backoff_initial * 2.0**doublings)
    return max(min(wait, left), get_requested_delay(error, settings) or 0.0)


def is_channel_down(error: SendError, settings: DeliverySettings) -> bool:
    """Whether the channel is down until a person acts, or for longer than the longest backoff."""
    too_long = error.retry_after is not None and error.retry_after > settings.backoff_max
    return error.scope is SendScope.CHANNEL or (error.scope is SendScope.ATTEMPT and too_long)


def get_requested_delay(error: SendError, settings: DeliverySettings) -> float | None:
    """Seconds that the provider asked for, `give_up_after` at most: then the delivery is tried once more."""
    return None if error.retry_after is None else min(error.retry_after, settings.give_up_after)
