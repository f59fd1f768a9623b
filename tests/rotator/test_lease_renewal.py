"""The lease is kept while the work goes on; who may have lost it stops. The loop's clock is the test's."""

import asyncio
from datetime import UTC, datetime
from typing import cast

import pytest

from services.rotator.session import RotationLeaseLostError, hold_lease
from shared.keyring.administration import Administration, Lease, RefusedError, UnreachableError


class Keyring:
    """Gives the lease for 60 s, unless the test has something to say first."""

    def __init__(self) -> None:
        self.renewals: list[float] = []
        self.answers: list[Exception | None] = []
        self.released: list[str] = []
        self.hangs = False

    async def acquire_lease(self, name: str, _seconds: float, token: str = "") -> Lease:
        self.renewals.append(asyncio.get_running_loop().time())
        if self.hangs and token:
            await asyncio.Event().wait()
        answer = self.answers.pop(0) if token and self.answers else None
        if answer:
            raise answer
        return Lease(holder=name, token="secret", expires_at=datetime.now(UTC))

    async def release_lease(self, token: str) -> None:
        self.released.append(token)


async def run_work(keyring: Keyring, seconds: float) -> str:
    async with hold_lease(cast("Administration", keyring), 60, "me"):
        await asyncio.sleep(seconds)
        return "done"


def no_answer() -> UnreachableError:
    return UnreachableError("nobody answers")


@pytest.mark.looptime
async def test_it_is_renewed_three_times_in_its_length_and_given_up_at_the_end() -> None:
    keyring = Keyring()
    assert await run_work(keyring, 130) == "done"
    assert keyring.renewals == [0, 20, 40, 60, 80, 100, 120]
    assert keyring.released == ["secret"]


@pytest.mark.looptime
async def test_a_renewal_that_fails_once_is_retried_and_the_work_goes_on() -> None:
    keyring = Keyring()
    keyring.answers = [no_answer(), None, no_answer()]
    assert await run_work(keyring, 130) == "done"


@pytest.mark.looptime
async def test_work_stops_before_its_lease_can_be_anothers() -> None:
    keyring = Keyring()
    keyring.answers = [no_answer()] * 9
    with pytest.raises(RotationLeaseLostError, match="could not be renewed within 60 s: nobody answers"):
        await run_work(keyring, 1000)
    assert asyncio.get_running_loop().time() <= 60
    assert keyring.released == ["secret"]


@pytest.mark.looptime
async def test_a_renewal_without_an_answer_does_not_outlast_the_lease() -> None:
    keyring = Keyring()
    keyring.hangs = True
    with pytest.raises(RotationLeaseLostError, match="no answer"):
        await run_work(keyring, 1000)
    assert asyncio.get_running_loop().time() <= 60


@pytest.mark.looptime
async def test_work_stops_at_once_where_another_has_the_lease() -> None:
    keyring = Keyring()
    keyring.answers = [None, RefusedError("another holds the lease")]
    with pytest.raises(RotationLeaseLostError, match="another holds the lease"):
        await run_work(keyring, 1000)
    assert asyncio.get_running_loop().time() == 40


@pytest.mark.looptime
async def test_the_lease_is_given_up_after_an_error_and_after_a_cancellation() -> None:
    keyring = Keyring()
    with pytest.raises(LookupError):
        async with hold_lease(cast("Administration", keyring), 60, "me"):
            raise LookupError
    running = asyncio.create_task(run_work(keyring, 1000))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert keyring.released == ["secret", "secret"]
    assert len(asyncio.all_tasks()) == 1
