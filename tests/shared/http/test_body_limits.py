import asyncio

import pytest

from shared.http.limits import ByteBudget


async def test_who_does_not_fit_waits_for_who_was_first_and_those_behind_wait_too() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6, 1)
    order: list[int] = []

    async def take(size: int) -> None:
        await budget.acquire(size, 5)
        order.append(size)

    waiting = [asyncio.create_task(take(size)) for size in (7, 1, 3)]
    await asyncio.sleep(0)
    assert order == []  # 1 would fit, but 7 was first
    budget.release(6)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == [7, 1]
    budget.release(7)
    await asyncio.gather(*waiting)
    assert order == [7, 1, 3]


async def test_who_waited_for_too_long_or_went_away_leaves_its_space_to_others() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10, 1)
    with pytest.raises(TimeoutError):
        await budget.acquire(10, 0.01)
    abandoned = asyncio.create_task(budget.acquire(10, 5))
    behind = asyncio.create_task(budget.acquire(2, 5))
    await asyncio.sleep(0)
    abandoned.cancel()
    budget.release(10)  # in the same moment
    await asyncio.gather(abandoned, return_exceptions=True)
    await asyncio.wait_for(behind, 1)
    await budget.acquire(8, 1)


async def test_who_goes_away_right_after_it_was_given_space_gives_it_back() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10, 1)
    abandoned = asyncio.create_task(budget.acquire(10, 5))
    await asyncio.sleep(0)
    budget.release(10)
    abandoned.cancel()  # it was given its room, and has not run since
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await budget.acquire(10, 0.1)
