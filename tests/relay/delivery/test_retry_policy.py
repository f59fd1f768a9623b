"""When a failed attempt is tried again: a table, and bounds that hold for any error."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.config import DeliverySettings
from services.relay.delivery.retry_policy import compute_retry_delay, is_channel_down

SETTINGS = DeliverySettings()
ATTEMPT, CHANNEL, MESSAGE = SendScope.ATTEMPT, SendScope.CHANNEL, SendScope.MESSAGE


def error_of(scope: SendScope, retry_after: float | None = None) -> SendError:
    return SendError(SendReason.SERVER_ERROR, scope, "no", retry_after=retry_after)


def wait(error: SendError, random: float = 1.0, **changes: Any) -> float | None:
    given = {"attempt": 1, "age": 100.0, "settings": SETTINGS, **changes}
    return compute_retry_delay(error, random=lambda: random, **given)


@pytest.mark.parametrize(
    ("error", "changes", "expected"),
    [
        *(
            (error_of(ATTEMPT), {"attempt": n}, s)
            for n, s in ((1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (5000, 300))
        ),
        *((error_of(ATTEMPT), {"attempt": 4, "random": r}, 8 * r) for r in (0.0, 0.5, 1.0)),
        (error_of(MESSAGE, 5), {}, None),
        (error_of(CHANNEL), {"random": 0.0}, 300),
        (error_of(ATTEMPT, 30), {}, 30),
        (error_of(CHANNEL, 400), {}, 400),
        (error_of(ATTEMPT), {"age": 86399.9, "random": 0.05}, 0.05),
        (error_of(ATTEMPT), {"age": 86400.0}, None),
        (error_of(CHANNEL), {"age": 86400.0}, None),
    ],
)
def test_when_it_is_tried_again(error: SendError, changes: dict[str, Any], expected: float | None) -> None:
    assert wait(error, **changes) == expected


def test_a_channel_is_down_that_a_person_must_fix_or_that_asks_for_more_than_the_longest_backoff() -> None:
    longest = SETTINGS.backoff_max
    cases = [(CHANNEL, None), (ATTEMPT, longest + 1), (ATTEMPT, longest), (ATTEMPT, None), (MESSAGE, longest + 1)]
    found = [is_channel_down(error_of(scope, retry_after), SETTINGS) for scope, retry_after in cases]
    assert found == [True, True, False, False, False]


@given(
    scope=st.sampled_from([ATTEMPT, CHANNEL]),
    attempt=st.integers(1, 10**6),
    retry_after=st.none() | st.floats(0, math.inf, allow_nan=False),
    random=st.floats(0, 1),
    age=st.floats(0, 86399),
)
def test_the_wait_is_bounded_and_never_shorter_than_asked(
    scope: SendScope, attempt: int, retry_after: float | None, random: float, age: float
) -> None:
    found = wait(error_of(scope, retry_after), random, attempt=attempt, age=age)
    requested = min(retry_after or 0.0, SETTINGS.give_up_after)
    assert found is not None
    assert requested <= found <= max(min(SETTINGS.backoff_max, SETTINGS.give_up_after - age), requested)
