"""Work side by side: bounded, handed over in its order, stopped by the first error, and cancelled without a rest."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from shared.process.concurrency import LARGE_BYTES, run_concurrently, run_in_thread_if_large

ITEMS = range(500)
MOST = 32


class Work:
    """Items that take longer the earlier they are; some fail, some never end."""

    def __init__(self, failing: int | None = None, stuck: int | None = None) -> None:
        self.failing, self.stuck = failing, stuck
        self.in_progress, self.most = 0, 0
        self.begun: list[int] = []
        self.batches: list[tuple[int, int]] = []

    async def do(self, item: int) -> int:
        self.begun.append(item)
        self.in_progress += 1
        self.most = max(self.most, self.in_progress)
        try:
            await asyncio.sleep(0.1 - item / 10_000 if item != self.stuck else 1e9)
            if item == self.failing:
                raise ValueError(item)
            return -item
        finally:
            self.in_progress -= 1

    async def take(self, outcomes: Sequence[tuple[int, int]]) -> None:
        await asyncio.sleep(0.01)
        self.batches += outcomes


@pytest.mark.looptime
async def test_a_bounded_number_is_in_progress_and_all_are_passed_on_in_their_order() -> None:
    work = Work()
    await run_concurrently(ITEMS, work.do, work.take, MOST)
    assert work.most == MOST
    assert work.batches == [(item, -item) for item in ITEMS]


@pytest.mark.looptime
async def test_one_that_is_slow_keeps_no_other_from_being_done() -> None:
    work, began = Work(), asyncio.get_running_loop().time()

    async def do(item: int) -> int:
        await asyncio.sleep(1 if item == 0 else 0.01)
        return await work.do(item)

    await run_concurrently(range(32 * 10), do, work.take, MOST)
    assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.looptime
async def test_the_first_error_stops_all_and_what_was_done_is_passed_on() -> None:
    work = Work(failing=200)
    with pytest.raises(ValueError, match="200"):
        await run_concurrently(ITEMS, work.do, work.take, MOST)
    assert max(work.begun) < 200 + 2 * MOST
    assert [item for item, _ in work.batches] == [item for item in sorted(work.begun) if item != 200]
    assert work.in_progress == 0


@pytest.mark.looptime
async def test_an_error_of_the_taker_stops_all() -> None:
    work = Work()

    async def full(outcomes: Sequence[tuple[int, int]]) -> None:
        raise OSError(len(outcomes))

    with pytest.raises(OSError, match="64"):
        await run_concurrently(ITEMS, work.do, full, MOST)
    assert (work.in_progress, max(work.begun) < 200) == (0, True)


@pytest.mark.looptime
async def test_a_cancelled_caller_leaves_nothing_in_progress() -> None:
    work = Work(stuck=3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await run_concurrently(ITEMS, work.do, work.take, MOST)
    assert work.in_progress == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nothing_to_do_is_done() -> None:
    work = Work()
    await run_concurrently([], work.do, work.take, MOST)
    assert work.batches == []


@pytest.mark.parametrize(("size", "is_on_loop"), [(LARGE_BYTES, True), (LARGE_BYTES + 1, False)])
async def test_only_large_work_leaves_the_event_loops_thread(size: int, is_on_loop: bool) -> None:
    thread = await run_in_thread_if_large(size, threading.current_thread)
    assert (thread is threading.current_thread()) is is_on_loop
