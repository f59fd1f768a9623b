"""Passwords of web.yml, with real bcrypt; how often and where it runs is watched."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import bcrypt
import pytest

from shared.http.fair_queue import QueueFullError
from shared.http.password_check import MAX_WAITING_CHECKS, PasswordChecker
from shared.http.web_config_auth import PASSWORD_CHECK_SECONDS

Counted = list[threading.Thread]


def _hash(password: bytes, cost: int = 4) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


PEER = "127.0.0.1"
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
    users = PasswordChecker(USERS)
    for _ in range(2):  # the second time, what was right is remembered
        assert await users.check_password("alice", b"a secret", PEER)
        assert not await users.check_password("alice", b"another", PEER)
        assert not await users.check_password("alice", b"", PEER)
        assert not await users.check_password("carol", b"a secret", PEER)
        assert await users.check_password("bob", b"another", PEER)


async def test_a_password_that_was_right_is_not_hashed_again_and_none_on_the_event_loop(checks: Counted) -> None:
    users = PasswordChecker(USERS)
    for _ in range(3):
        assert await users.check_password("alice", b"a secret", PEER)
    assert len(checks) == 1
    assert not await users.check_password("alice", b"wrong", PEER)
    assert not await users.check_password("alice", b"wrong", PEER)
    assert len(checks) == 3
    assert threading.current_thread() not in checks


async def test_a_wrong_password_takes_the_time_of_the_most_expensive_hash_whoever_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[int] = []
    real = bcrypt.checkpw

    def check(password: bytes, stored: bytes) -> bool:
        spent.append(2 ** int(stored[4:6]))  # each step of cost doubles the time
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    users = PasswordChecker({"cheap": _hash(b"x", 4), "middle": _hash(b"x", 6), "dear": _hash(b"x", 7)})
    for name in ("nobody", "cheap", "middle", "dear"):
        spent.clear()
        assert not await users.check_password(name, b"wrong", PEER)
        assert sum(spent) == 2**7, name


@dataclass
class BlockedHash:
    """Checks that end when they are let, each with its password."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    passwords: list[bytes] = field(default_factory=list)

    def check(self, password: bytes, _stored: bytes) -> bool:
        self.passwords.append(password)
        self.begun.release()
        assert self.go_on.acquire(timeout=10)
        return password == b"right"

    async def until_one_runs(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> BlockedHash:
    blocked = BlockedHash()
    monkeypatch.setattr(bcrypt, "checkpw", blocked.check)
    return blocked


async def test_dozens_of_one_address_are_checked_in_their_order_and_keep_no_other_waiting(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(users.check_password("first", b"first", "127.0.0.2"))
        await blocked.until_one_runs()
        wrong = [
            tasks.create_task(users.check_password(f"nobody{n}", b"%d" % n, "127.0.0.2"))
            for n in range(MAX_WAITING_CHECKS - 2)
        ]
        await asyncio.sleep(0)
        behind_them = tasks.create_task(
            users.check_password("alice", b"right", "127.0.0.2")
        )  # all come through an ingress
        elsewhere = tasks.create_task(users.check_password("nobody", b"elsewhere", "127.0.0.3"))
        blocked.go_on.release(MAX_WAITING_CHECKS + 1)
        assert await behind_them
    assert blocked.passwords.index(b"elsewhere") < 6  # the addresses take turns
    blocked.passwords.remove(b"elsewhere")
    assert blocked.passwords == [b"first", *(b"%d" % n for n in range(MAX_WAITING_CHECKS - 2)), b"right"]
    assert [each.result() for each in (elsewhere, *wrong)] == [False] * (MAX_WAITING_CHECKS - 1)


async def test_where_every_slot_is_taken_an_address_with_few_gets_one_of_that_with_most(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20):
        running = asyncio.create_task(users.check_password("first", b"first", PEER))
        await blocked.until_one_runs()
        addresses = [f"127.0.0.{10 + n % 8}" for n in range(MAX_WAITING_CHECKS)]
        waiting = [
            asyncio.create_task(users.check_password(f"nobody{n}", b"x", address))
            for n, address in enumerate(addresses)
        ]
        await asyncio.sleep(0)
        right = [asyncio.create_task(users.check_password("alice", b"right", f"127.0.0.{n}")) for n in (200, 201)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await users.check_password("alice", b"x", addresses[-1])  # it has as many as any
        blocked.go_on.release(MAX_WAITING_CHECKS + 1)
        assert await asyncio.gather(*right) == [True, True]
        ended = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [isinstance(each, QueueFullError) for each in ended].count(True) == 2
    assert users._queue._queues == {}


async def test_the_addresses_of_one_ipv6_network_count_as_one(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20):
        running = asyncio.create_task(users.check_password("first", b"first", PEER))
        await blocked.until_one_runs()
        waiting = [
            asyncio.create_task(users.check_password(f"nobody{n}", b"x", f"2001:db8::{n:x}"))
            for n in range(MAX_WAITING_CHECKS)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await users.check_password("alice", b"x", "2001:db8::ffff")
        others = [
            asyncio.create_task(users.check_password("alice", b"right", peer))
            for peer in ("2001:db8:0:1::1", "", "::1")
        ]
        blocked.go_on.release(MAX_WAITING_CHECKS + 1)
        assert await asyncio.gather(*others) == [True] * 3
        await asyncio.gather(running, *waiting, return_exceptions=True)


async def test_all_addresses_in_total_wait_up_to_a_bound(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(users.check_password("first", b"first", PEER))
        await blocked.until_one_runs()
        for n in range(MAX_WAITING_CHECKS):
            tasks.create_task(users.check_password(f"nobody{n}", b"x", f"192.0.2.{n}"))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await users.check_password("alice", b"x", "198.51.100.1")
        blocked.go_on.release(MAX_WAITING_CHECKS + 1)
    assert users._queue._queues == {}


async def test_a_check_that_is_given_up_leaves_its_slot_and_is_never_made(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20):
        running = asyncio.create_task(users.check_password("alice", b"running", PEER))
        await blocked.until_one_runs()
        given_up = [asyncio.create_task(users.check_password("alice", b"%d" % n, PEER)) for n in range(8)]
        await asyncio.sleep(0)
        for task in (running, *given_up):
            task.cancel()
        await asyncio.gather(running, *given_up, return_exceptions=True)
        right = asyncio.create_task(users.check_password("alice", b"right", PEER))
        blocked.go_on.release(2)
        assert await right
    assert blocked.passwords == [b"running", b"right"]
    assert (users._queue._queues, users._queue._free) == ({}, 1)


async def test_a_check_that_is_given_up_as_it_gets_its_slot_passes_the_slot_on(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20):
        async with users._queue.acquire(PEER):
            given_up = asyncio.create_task(users.check_password("alice", b"given up", PEER))
            right = asyncio.create_task(users.check_password("alice", b"right", PEER))
            await asyncio.sleep(0)
        given_up.cancel()
        blocked.go_on.release()
        assert await right
    assert blocked.passwords == [b"right"]


async def test_a_password_that_was_found_right_meanwhile_is_not_hashed_again(blocked: BlockedHash) -> None:
    users = PasswordChecker({"alice": USERS["alice"]})
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        attempts = [tasks.create_task(users.check_password("alice", b"right", PEER)) for _ in range(8)]
        await blocked.until_one_runs()
        blocked.go_on.release()
    assert [task.result() for task in attempts] == [True] * 8
    assert blocked.passwords == [b"right"]


@pytest.mark.parametrize("password", [b"long" * 30, "пароль".encode(), b"with\0nul", b"\xff"])
async def test_any_password_can_be_checked(password: bytes) -> None:
    users = PasswordChecker({"alice": _hash(password[:72])})
    assert await users.check_password("alice", password, PEER)
    assert not await users.check_password("alice", b"x" + password, PEER)


async def test_a_correct_password_is_answered_while_the_threads_of_the_event_loop_are_all_taken() -> None:
    go_on = threading.Event()
    waiting = [asyncio.create_task(asyncio.to_thread(go_on.wait, 60)) for _ in range(64)]
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await PasswordChecker(USERS).check_password("alice", b"a secret", PEER)
    finally:
        go_on.set()
        await asyncio.gather(*waiting)


@pytest.mark.looptime
async def test_each_failed_password_of_a_name_delays_its_next_check_longer_whoever_sends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users, loop = PasswordChecker(USERS), asyncio.get_running_loop()

    async def run_here(_executor: object, check: Callable[..., object], *arguments: object) -> object:
        return check(*arguments)  # while a thread works, this loop's clock is moved on

    monkeypatch.setattr(loop, "run_in_executor", run_here)

    async def measure(name: str, password: bytes, peer: str) -> float:
        began = loop.time()
        await users.check_password(name, password, peer)
        return loop.time() - began

    for name in ("alice", "nobody", "\ud800" * 1000):  # the delay reveals no names
        delays = [await measure(name, b"wrong", f"192.0.2.{n}") for n in range(8)]
        assert delays == pytest.approx([0, 0.125, 0.25, 0.5, 1, 2, 2, 2], abs=0.1)
    assert await measure("bob", b"wrong", PEER) == pytest.approx(0, abs=0.1)  # who has none
    for n in range(6):
        await users.check_password("alice", b"%d" % n, PEER)
    assert await measure("alice", b"a secret", PEER) == pytest.approx(2, abs=0.1)
    assert await measure("alice", b"a secret", PEER) == pytest.approx(0, abs=0.1)  # which is cached
    delays = [await measure("alice", b"wrong", PEER) for _ in range(3)]  # a correct one forgets the failures
    assert delays == pytest.approx([0, 0.125, 0.25], abs=0.1)
    await asyncio.sleep(1000)
    assert await measure("nobody", b"wrong", PEER) == pytest.approx(0, abs=0.1)


@pytest.mark.looptime
async def test_who_guesses_from_one_address_keeps_neither_the_user_nor_another_one_out() -> None:
    users, loop = PasswordChecker(USERS), asyncio.get_running_loop()
    for n in range(8):
        assert not await users.check_password("alice", b"%d" % n, "192.0.2.66")
    guessing = [
        asyncio.create_task(users.check_password(name, b"%d" % n, "192.0.2.66"))
        for n in range(100)
        for name in ("alice", f"nobody{n}")
    ]
    await asyncio.sleep(0)
    began = loop.time()
    assert all(
        await asyncio.gather(
            users.check_password("alice", b"a secret", PEER), users.check_password("bob", b"another", PEER)
        )
    )
    assert loop.time() - began < PASSWORD_CHECK_SECONDS
    ended = await asyncio.gather(*guessing, return_exceptions=True)
    assert [isinstance(each, QueueFullError) for each in ended].count(True) > 100


async def test_the_names_that_are_remembered_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda _password, _stored: False)
    users = PasswordChecker(USERS)
    for n in range(1100):
        await users.check_password(f"nobody{n}", b"x", PEER)
    assert len(users._guesses) == 1000
