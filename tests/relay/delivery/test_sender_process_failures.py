"""Whatever happens to the sender process, each send has a result, and the next one is sent."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from services.relay.channels.port import SendReason, SendScope
from services.relay.delivery.attempt import RemoteSender, Sender, SendResult
from services.relay.delivery.sender_process import open_sender_process
from tests.relay.delivery.sender_tasks import SETTINGS, has_exited, never, outgoing, process_of, sending_processes
from tests.relay.served_relay import until


@pytest.fixture
async def send(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    """One that a test may end, and whose process is soon followed by another."""
    monkeypatch.setattr("services.relay.delivery.sender_process._RESTART_SECONDS", 0.05)
    async with asyncio.timeout(120), open_sender_process(SETTINGS) as send:
        yield send


async def test_what_it_was_sending_when_it_died_may_have_arrived_and_the_next_one_goes_out(send: Sender) -> None:
    first = await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang"), never))
    with capture_logs() as logs:
        endings = [(await send(outgoing("die"), never)), await hanging]
        assert await process_of(send) != first
    for each in endings:
        assert each.error is not None
        assert str(each.error) == "the sender process exited during the attempt"
        assert (each.error.reason, each.error.scope, each.error.maybe_arrived) == (
            SendReason.INTERNAL,
            SendScope.ATTEMPT,
            True,
        )
    (error_line,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert error_line["event"] == "sender process exited; restarting it"
    assert error_line["exit_code"] == -signal.SIGKILL


async def test_what_waited_for_it_to_start_did_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_START_SECONDS", "_PING_SECONDS"):
        monkeypatch.setattr(f"services.relay.delivery.sender_process.{name}", 60.0)
    async with asyncio.timeout(120), open_sender_process(SETTINGS) as send:
        waiting = asyncio.create_task(send(outgoing(), never))
        await until(lambda: bool(sending_processes()))
        for pid in sending_processes():
            os.kill(pid, signal.SIGKILL)
        assert isinstance(send, RemoteSender)
        assert await send.ping(), "one that starts is not taken for one that does not answer"
        assert (await waiting).error is None  # it goes out by the next one


async def test_another_version_on_the_disk_is_reported_and_nothing_is_sent_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.relay.delivery.sender_process.VERSION", "0.0.1")
    with capture_logs() as logs:
        async with open_sender_process(SETTINGS) as send:
            await until(lambda: any(entry["log_level"] == "error" for entry in logs), 60)
            attempted = await send(outgoing(seconds=0.2), never)
    assert attempted.error is not None
    assert (str(attempted.error), attempted.error.maybe_arrived) == ("no sender process could be started", False)
    errors = {entry["event"] for entry in logs if entry["log_level"] == "error"}
    assert errors == {"installed version differs from the running version"}


async def test_an_answer_that_came_while_the_relay_was_stopped_counts(send: Sender) -> None:
    first = await process_of(send)
    sending = asyncio.create_task(send(outgoing(seconds=1.0, lease=2.0), never))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is said by now
    time.sleep(1.7)  # noqa: ASYNC251  # as if the process was stopped
    assert (await sending).receipt is not None
    await asyncio.sleep(0.5)  # longer than the look at what it said meanwhile
    assert await process_of(send) == first


@pytest.mark.parametrize("how", ["blocked", "stopped"])
async def test_one_that_says_nothing_is_killed_before_anybody_else_may_send(send: Sender, how: str) -> None:
    first = await process_of(send)
    if how == "stopped":
        os.kill(first, signal.SIGSTOP)
    out = outgoing("block", seconds=0.5, lease=2.5)
    attempted = await send(out, never)
    assert asyncio.get_running_loop().time() < out.lease_ends
    assert has_exited(first)
    assert attempted.error is not None
    assert attempted.error.maybe_arrived
    assert await process_of(send) != first


async def test_a_person_who_reads_it_sees_whether_it_answers(send: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(send, RemoteSender)
    pid = await process_of(send)
    monkeypatch.setattr("services.relay.delivery.sender_process._PING_SECONDS", 20)
    assert await send.ping()
    monkeypatch.setattr("services.relay.delivery.sender_process._PING_SECONDS", 0.05)
    os.kill(pid, signal.SIGSTOP)
    assert not await send.ping()
    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr("services.relay.delivery.sender_process._PING_SECONDS", 20)
    assert await send.ping()


async def test_where_none_can_be_started_nothing_becomes_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setattr("services.relay.delivery.sender_process._START_SECONDS", 0.2)
    with capture_logs() as logs:
        async with open_sender_process(SETTINGS) as send:
            attempted = await send(outgoing(seconds=0.2), never)
            assert isinstance(send, RemoteSender)
            assert not await send.ping()
    assert attempted.error is not None
    assert (str(attempted.error), attempted.error.maybe_arrived) == ("no sender process could be started", False)
    assert any(entry["event"] == "sender process cannot be started" for entry in logs)


@pytest.mark.parametrize("remark", ["hang", "block"])
async def test_at_the_end_it_is_gone_whatever_it_does(remark: str) -> None:
    async with asyncio.timeout(120), open_sender_process(SETTINGS) as send:
        pid = await process_of(send)
        hanging = asyncio.create_task(send(outgoing(remark), never))
        await asyncio.sleep(0.1)
    assert has_exited(pid)
    ending: SendResult = await hanging
    assert ending.error is not None
    assert ending.error.maybe_arrived


async def test_signals_to_all_processes_do_not_end_it(send: Sender) -> None:
    pid = await process_of(send)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert await process_of(send) == pid
