import asyncio
import itertools

import pytest

from services.exporter.model import Failure
from services.exporter.probes.round_trip import time_call
from shared.kms.port import KmsError
from shared.kms.reason import Reason


def clock() -> float:
    return next(ticks)


ticks = itertools.count(100.0, 0.25)


async def raising(error: BaseException) -> str:
    raise error


async def test_an_answer_comes_with_its_seconds_and_without_a_failure() -> None:
    async def call() -> str:
        return "answer"

    assert await time_call(call, timeout=1, clock=clock) == (0.25, None, "answer")


async def test_an_error_of_the_port_keeps_its_reason_and_its_text() -> None:
    error = KmsError(Reason.PERMISSION_DENIED, "not granted")
    failure = Failure(Reason.PERMISSION_DENIED, "not granted")
    assert await time_call(lambda: raising(error), timeout=1, clock=clock) == (0.25, failure, None)


async def test_only_a_timeout_lasts_at_least_as_long_as_its_bound() -> None:
    late = KmsError(Reason.TIMEOUT, "late")
    assert (await time_call(lambda: raising(late), timeout=7, clock=clock))[0] == 7
    assert (await time_call(lambda: raising(late), timeout=0.1, clock=clock))[0] == 0.25
    assert (await time_call(lambda: raising(KmsError(Reason.UNAVAILABLE, "")), timeout=7, clock=clock))[0] == 0.25


@pytest.mark.parametrize("error", [ZeroDivisionError("defect"), TimeoutError(), asyncio.CancelledError()])
async def test_whatever_else_is_raised_is_internal_and_keeps_its_trace(error: BaseException) -> None:
    seconds, failure, answer = await time_call(lambda: raising(error), timeout=7, clock=clock)
    assert (seconds, failure, answer) == (0.25, Failure(Reason.INTERNAL, repr(error), error), None)
    assert error.__traceback__ is not None


async def test_a_call_that_raises_before_it_can_be_awaited_is_a_failure_too() -> None:
    def call() -> "asyncio.Future[str]":
        raise ZeroDivisionError

    _, failure, _ = await time_call(call, timeout=1, clock=clock)
    assert failure is not None
    assert failure.reason is Reason.INTERNAL


async def test_a_cancellation_of_ours_goes_through() -> None:
    task = asyncio.create_task(time_call(asyncio.Event().wait, timeout=1, clock=clock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_process_goes_through(error: type[BaseException]) -> None:
    call = time_call(lambda: raising(error()), timeout=1, clock=clock)
    with pytest.raises(error):
        call.send(None)
