"""Passwords of web.yml, with real bcrypt; how often and where it runs is watched."""

import asyncio
import threading
from collections.abc import Callable

import bcrypt
import pytest

from shared.basic_auth import BusyError, Users

Counted = list[threading.Thread]


def _hash(password: bytes, cost: int = 4) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


USERS = {"alice": _hash(b"a secret"), "bob": _hash(b"another")}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """The thread of each bcrypt check."""
    threads: Counted = []
    check: Callable[[bytes, bytes], bool] = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> bool:
        threads.append(threading.current_thread())
        return check(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return threads


async def test_a_user_is_known_by_their_own_password_alone() -> None:
    users = Users(USERS)
    for _ in range(2):  # the second time, what was right is remembered
        assert await users.admits("alice", b"a secret")
        assert not await users.admits("alice", b"another")
        assert not await users.admits("alice", b"")
        assert not await users.admits("carol", b"a secret")
        assert await users.admits("bob", b"another")


async def test_a_password_that_was_right_is_not_hashed_again_and_none_on_the_event_loop(checks: Counted) -> None:
    users = Users(USERS)
    for _ in range(3):
        assert await users.admits("alice", b"a secret")
    assert len(checks) == 1
    assert not await users.admits("alice", b"wrong")
    assert not await users.admits("alice", b"wrong")
    assert len(checks) == 3
    assert threading.current_thread() not in checks


async def test_a_name_that_nobody_has_costs_a_check_of_the_dearest_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def check(_password: bytes, stored: bytes) -> bool:
        asked.append(stored)
        return True

    monkeypatch.setattr(bcrypt, "checkpw", check)
    dear = _hash(b"x", 5)
    assert not await Users({**USERS, "dear": dear}).admits("nobody", b"x")
    assert asked == [dear.encode()]


async def test_one_check_runs_at_a_time_few_wait_and_the_others_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, running = threading.Event(), threading.Event(), []

    def check(_password: bytes, _stored: bytes) -> bool:
        running.append(1)
        begun.set()
        assert go_on.wait(10)
        return False

    monkeypatch.setattr(bcrypt, "checkpw", check)
    users = Users(USERS)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(users.admits("alice", b"%d" % n)) for n in range(32)]
        assert await asyncio.to_thread(begun.wait, 10)
        with pytest.raises(BusyError):
            await users.admits("alice", b"one more")
        assert len(running) == 1
        asked[5].cancel()  # a place that is given up is free again
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.append(tasks.create_task(users.admits("bob", b"x")))
        await asyncio.sleep(0)
        go_on.set()
    assert [task.result() for task in asked if not task.cancelled()] == [False] * 32
    assert not await users.admits("alice", b"later")


@pytest.mark.parametrize("password", [b"long" * 30, "пароль".encode(), b"with\0nul", b"\xff"])
async def test_any_password_can_be_asked_about(password: bytes) -> None:
    users = Users({"alice": _hash(password[:72])})
    assert await users.admits("alice", password)
    assert not await users.admits("alice", b"x" + password)


async def test_a_right_password_is_answered_while_the_threads_of_the_event_loop_are_all_taken() -> None:
    go_on = threading.Event()
    waiting = [asyncio.create_task(asyncio.to_thread(go_on.wait, 60)) for _ in range(64)]
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await Users(USERS).admits("alice", b"a secret")
    finally:
        go_on.set()
        await asyncio.gather(*waiting)
