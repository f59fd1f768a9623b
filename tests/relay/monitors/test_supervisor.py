"""Turns go on, whatever one of them meets."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from services.relay.monitors.supervisor import run_forever
from services.relay.outbox.store import StoreUnavailableError

pytestmark = pytest.mark.looptime


async def test_a_round_that_fails_is_followed_by_the_next() -> None:
    rounds: list[float] = []
    outcomes: Iterator[float | Exception] = iter(
        [30.0, StoreUnavailableError("locked"), LookupError("Bearer a-secret"), 30.0]
    )

    async def run_round() -> float:
        rounds.append(asyncio.get_running_loop().time())
        outcome = next(outcomes, 30.0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    start = asyncio.get_running_loop().time()
    with capture_logs() as logs, pytest.raises(TimeoutError):
        await asyncio.wait_for(run_forever("reconcile", run_round), 125)
    waits = [later - earlier for earlier, later in itertools.pairwise(rounds)]
    assert rounds[0] == start
    assert waits == [30, 1, 60, 30]
    (line,) = logs
    assert (line["monitor"], line["error"]) == ("reconcile", "LookupError")
    assert "a-secret" not in str(line)


async def test_a_cancellation_that_is_not_ours_ends_no_watch() -> None:
    rounds = 0

    async def run_round() -> float:
        nonlocal rounds
        rounds += 1
        raise asyncio.CancelledError  # out of a library, for something of its own

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run_forever("reconcile", run_round), 100)
    assert rounds == 2
