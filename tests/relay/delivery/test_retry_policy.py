"""When a failed attempt is tried again: a table, and bounds that hold for any error."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.config import DeliverySettings
from services.relay.delivery.task import compute_retry_delay

SETTINGS = DeliverySettings()


def wait(scope: SendScope, *, retry_after: float | None = None, random: float = 1.0, **changes: Any) -> float | None:
    error = SendError(SendReason.SERVER_ERROR, scope, "no", retry_after=retry_after)
    return compute_retry_delay(
        error, random=lambda: random, **{"attempt": 1, "age": 100.0, "settings": SETTINGS, **changes}
    )


def test_the_backoff_doubles_up_to_its_maximum() -> None:
    waits = [wait(SendScope.ATTEMPT, attempt=attempt) for attempt in (1, 2, 3, 9, 10, 5000)]
    assert waits == [1, 2, 4, 256, 300, 300]


def test_jitter_spreads_over_the_whole_backoff() -> None:
    assert [wait(SendScope.ATTEMPT, attempt=4, random=r) for r in (0.0, 0.5, 1.0)] == [0, 4, 8]


def test_an_error_of_the_message_is_never_retried() -> None:
    assert wait(SendScope.MESSAGE, retry_after=5) is None


def test_an_error_of_the_channel_waits_the_longest_backoff() -> None:
    assert wait(SendScope.CHANNEL, random=0.0) == 300


def test_a_provider_is_not_asked_before_it_said() -> None:
    assert wait(SendScope.ATTEMPT, retry_after=30) == 30
    assert wait(SendScope.CHANNEL, retry_after=400) == 400


def test_it_is_given_up_after_its_time() -> None:
    assert wait(SendScope.ATTEMPT, age=86399.9, random=0.5) is not None
    assert wait(SendScope.ATTEMPT, age=86400.0) is None
    assert wait(SendScope.CHANNEL, age=86400.0) is None


@given(
    scope=st.sampled_from([SendScope.ATTEMPT, SendScope.CHANNEL]),
    attempt=st.integers(1, 10**6),
    retry_after=st.none() | st.floats(0, math.inf, allow_nan=False),
    random=st.floats(0, 1),
    age=st.floats(0, 86399),
)
def test_the_wait_is_bounded_and_never_shorter_than_asked(
    scope: SendScope, attempt: int, retry_after: float | None, random: float, age: float
) -> None:
    error = SendError(SendReason.RATE_LIMITED, scope, "no", retry_after=retry_after)
    wait = compute_retry_delay(error, attempt=attempt, age=age, settings=SETTINGS, random=lambda: random)
    requested = min(retry_after or 0.0, SETTINGS.give_up_after)
    assert wait is not None
    assert wait >= requested
    assert wait <= max(SETTINGS.backoff_max, requested)
    assert wait <= max(SETTINGS.give_up_after - age, requested)
