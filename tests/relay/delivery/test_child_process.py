"""A process that does what it is asked: whatever it does, the caller has its answer, or none, in time."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from services.relay.delivery.child_process import ChildEndedError, ChildLateError, ChildProcess, serve

LONG = 60.0
"""Seconds: a busy machine gives a process little of its time."""


def answer(request: bytes) -> bytes:
    if request == b"hang":
        time.sleep(LONG)
    if request == b"end":
        os._exit(1)
    return request * 2


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    with closing(ChildProcess("tests.relay.delivery.test_child_process", "FOLDER")) as child:
        yield child


def test_it_answers_one_after_the_other_and_starts_again_after_its_end(child: ChildProcess) -> None:
    large = bytes(1_000_000)
    assert [child.ask(each, LONG) for each in (b"a", b"", large)] == [b"aa", b"", large * 2]
    with pytest.raises(ChildEndedError):
        child.ask(b"end", LONG)
    assert child.ask(b"b", LONG) == b"bb"


def test_one_that_is_late_is_killed_and_who_waits_for_it_waits_no_longer_than_it_may(child: ChildProcess) -> None:
    child.ask(b"a", LONG)
    running = child._running
    assert running is not None
    errors: list[ChildLateError] = []

    def hang() -> None:
        with pytest.raises(ChildLateError) as late:
            child.ask(b"hang", 1.0)
        errors.append(late.value)

    thread = threading.Thread(target=hang)
    thread.start()
    while not child._lock.locked():
        time.sleep(0.01)
    with pytest.raises(ChildLateError):
        child.ask(b"b", 0.01)
    thread.join()
    assert str(errors[0]) == "it did not answer in time"
    assert running.process.returncode == -9
    assert child.ask(b"b", LONG) == b"bb"


def test_one_that_still_starts_is_left_to_the_next_request(child: ChildProcess) -> None:
    with pytest.raises(ChildLateError, match="not started yet"):
        child.ask(b"a", 0.0)
    assert child.ask(b"a", LONG) == b"aa"


def test_to_end_it_waits_for_no_answer(child: ChildProcess) -> None:
    child.ask(b"a", LONG)
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(child.ask, b"hang", LONG)
        while not child._lock.locked():
            time.sleep(0.01)
        begun = time.monotonic()
        child.close()
        assert time.monotonic() - begun < LONG / 2
        assert isinstance(hanging.exception(), ChildEndedError | ChildLateError)  # as it answers, or as it starts


if __name__ == "__main__":
    serve(answer, 8 * 1024**3)
