"""Why a delivery was late: what is stored says it, or it is unknown."""

from typing import Any

import pytest

from services.relay.report.queries import SlowAttempt, SlowDelivery
from services.relay.report.report import explain_delay


def slow(*attempts: tuple[float, float, str], until: float = 1100.0, **changes: Any) -> SlowDelivery:
    """A delivery that was accepted at 1000; attempts are when after that, how long, and how they ended."""
    attempt_rows = [SlowAttempt(1000 + at, seconds, reason, "") for at, seconds, reason in attempts]
    fields: dict[str, Any] = {"is_digest": False, "is_restored": False, "attempts": attempt_rows, **changes}
    return SlowDelivery("id", "one", "slack", "KMSTest", "firing", 1000.0, until, **fields)


NOTHING = "waited 1 min 40 s; nothing was delivered on the channel, no reason is stored"


@pytest.mark.parametrize(
    ("delivery", "cause", "why"),
    [
        (slow((0, 100, "ok")), "provider", "the provider took 1 min 40 s to answer"),
        (
            slow((0, 10, "timeout"), (20, 1, "server_error"), (40, 10, "timeout"), (99, 1, "ok")),
            "provider",
            "3 of 4 attempts failed in 1 min 40 s: timeout (2), server_error",
        ),
        (
            slow((1, 1, "rate_limited"), (31, 1, "rate_limited"), (99, 1, "ok")),
            "rate_limit",
            "2 of 3 attempts failed in 1 min 39 s: rate_limited (2)",
        ),
        (
            slow((99, 1, "ok"), blocked=99.0, other_failures={"timeout": 3, "connection": 4}),
            "circuit_breaker",
            "waited 1 min 39 s while other messages failed on the channel: connection (4), timeout (3)",
        ),
        (
            slow((99, 1, "ok"), blocked=99.0, other_failures={"rate_limited": 3}),
            "rate_limit",
            "waited 1 min 39 s while other messages failed on the channel: rate_limited (3)",
        ),
        (
            slow((60, 40, "ok"), blocked=1.0, others_delivered=1),
            "rate_limit",
            "waited 59 s for the rate limit, behind 1 other message; the provider took 40 s to answer",
        ),
        (
            slow((99, 1, "ok"), others_delivered=1000, is_digest=True),
            "rate_limit",
            "waited 1 min 39 s for the rate limit, behind 1000 or more other messages; a digest delivered it",
        ),
        (
            slow((60, 1, "timeout"), (99, 1, "ok"), is_restored=True),
            "restored_backup",
            "waited 1 min after a backup was restored; 1 of 2 attempts failed in 40 s: timeout",
        ),
        (slow((100, 0, "ok"), blocked=100.0), "unknown", NOTHING),
        (slow(blocked=100.0), "unknown", NOTHING),
        (slow((0.9, 0.2, "ok"), until=1001.1), "provider", "the provider took 200 ms to answer"),
        (slow((0, 0, "ok"), until=1000.0), "provider", "the provider took 0 ms to answer"),
        # Another clock than the database's said when the attempt was.
        (slow((-5, 1, "ok"), until=1000.5), "provider", "the provider took 500 ms to answer"),
    ],
)
def test_the_larger_part_of_a_delay_comes_first(delivery: SlowDelivery, cause: str, why: str) -> None:
    assert tuple(explain_delay(delivery)) == (cause, why)
