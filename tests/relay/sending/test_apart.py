"""Whatever happens to the sending process, each send has an ending, and the next one goes out."""

import asyncio
import os
import signal
import time
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.relay.channels.channel import LeaseLostError, Progress, Reason, Scope
from services.relay.event_json import encode
from services.relay.sending.apart import apart
from services.relay.sending.enrich.links import LinkRules
from services.relay.sending.outgoing import Attempted, NotKeptError, Outgoing, Send, SendingSettings
from tests.relay.scripted import event_of, until
from tests.relay.sending.odd import REFUSED, OddSettings

LINKS = LinkRules("https://docs.example.org/#{alertname_lower}", None, ("docs.example.org",))
SETTINGS = SendingSettings({"odd": OddSettings()}, LINKS, {"owner": "#team"}, 10)


@pytest.fixture
async def send() -> AsyncIterator[Send]:
    async with asyncio.timeout(50), apart(SETTINGS) as send:
        yield send


async def never(progress: Progress) -> None:
    pytest.fail(f"{progress} was to be kept")


def outgoing(note: str = "", *, seconds: float = 20.0, lease: float = 60.0) -> Outgoing:
    now = asyncio.get_running_loop().time()
    written = encode(event_of())
    return Outgoing(
        channel="odd",
        delivery_id="d",
        incident_id="i",
        episode=1,
        accepted_at=datetime(2026, 1, 1, tzinfo=UTC),
        written_event=written,
        size=len(written),
        first_receipt=None,
        untold=False,
        note=note,
        age=1.5,
        progress={},
        maybe_sent=False,
        ends=now + seconds,
        lease_ends=now + lease,
    )


async def process_of(send: Send) -> int:
    attempted = await send(outgoing(), never)
    assert attempted.receipt is not None
    return int(attempted.receipt["process"])


def sending_processes() -> list[int]:
    """Those among our children; a database of other tests may be another."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"services.relay.sending" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def hang_there(send: Send, number: int) -> bool:
    receipt = (await send(outgoing(), never)).receipt
    return receipt is not None and receipt["hanging"] == str(number)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_message_is_made_and_sent_in_another_process(send: Send) -> None:
    attempted = await send(outgoing(), never)
    assert attempted.receipt is not None
    assert int(attempted.receipt["process"]) != os.getpid()
    assert attempted.payload is not None
    told = "firing https://docs.example.org/#kmscryptomodenotkms {'owner': '#team'}"
    assert zlib.decompress(attempted.payload).decode() == told
    assert (attempted.answer, attempted.error, attempted.lease_lost) == ("taken", None, False)


async def test_a_thousand_at_once_get_each_its_own_ending(send: Send) -> None:
    notes = ["", "refuse", "fail", "keep"] * 250
    kept: list[Progress] = []

    async def keep(progress: Progress) -> None:
        kept.append(progress)

    endings = await asyncio.gather(*(send(outgoing(note), keep) for note in notes))
    reasons = [None if each.error is None else each.error.reason for each in endings]
    assert reasons == [None, Reason.RATE_LIMITED, Reason.INTERNAL, None] * 250
    assert kept == [{"told": "one of two"}] * 250


async def test_an_error_comes_over_as_it_was(send: Send) -> None:
    error = (await send(outgoing("refuse"), never)).error
    assert error is not None
    assert vars(error) == vars(REFUSED)
    assert str(error) == "later ü"


async def test_a_defect_comes_over_without_its_text(send: Send) -> None:
    error = (await send(outgoing("fail"), never)).error
    assert error is not None
    assert (error.reason, error.detail, error.maybe_arrived) == (Reason.INTERNAL, "a defect: ValueError", True)


async def test_progress_is_kept_before_the_send_goes_on(send: Send) -> None:
    kept: list[Progress] = []

    async def keep(progress: Progress) -> None:
        await asyncio.sleep(0.05)
        kept.append(progress)

    attempted = await send(outgoing("keep"), keep)
    assert kept == [{"told": "one of two"}]
    assert attempted.receipt is not None
    assert attempted.receipt["progress"] == "{'told': 'one of two'}"


@pytest.mark.parametrize(
    ("raised", "reason", "detail"),
    [
        (LeaseLostError(), Reason.TIMEOUT, "the lease ended between two requests"),
        (
            NotKeptError("it is locked"),
            Reason.INTERNAL,
            "the outbox was not available in the middle of it: it is locked",
        ),
    ],
)
async def test_what_cannot_be_kept_ends_the_send(send: Send, raised: Exception, reason: Reason, detail: str) -> None:
    async def keep(_progress: Progress) -> None:
        raise raised

    error = (await send(outgoing("keep"), keep)).error
    assert error is not None
    assert (error.reason, error.scope, error.detail, error.maybe_arrived) == (reason, Scope.ATTEMPT, detail, True)


@pytest.mark.parametrize("lease", [0.0, 19.0])  # the send may take 20 s
async def test_nothing_is_sent_that_could_outlast_its_lease(send: Send, lease: float) -> None:
    assert (await send(outgoing(lease=lease), never)).lease_lost


async def test_a_send_that_hangs_ends_in_time_and_the_others_go_on(send: Send) -> None:
    await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang", seconds=0.5), never))
    assert await process_of(send)
    error = (await hanging).error
    assert error is not None
    assert (error.reason, error.maybe_arrived) == (Reason.TIMEOUT, True)


async def test_what_it_was_sending_when_it_died_may_have_arrived_and_the_next_one_goes_out(send: Send) -> None:
    first = await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang"), never))
    with capture_logs() as logs:
        endings = [(await send(outgoing("die"), never)), await hanging]
        assert await process_of(send) != first
    for each in endings:
        assert each.error is not None
        assert each.error.detail == "the sending process ended in the middle of it"
        assert (each.error.reason, each.error.scope, each.error.maybe_arrived) == (
            Reason.INTERNAL,
            Scope.ATTEMPT,
            True,
        )
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert said["event"] == "the sending process has ended; another one is started"
    assert said["exit_code"] == -signal.SIGKILL


async def test_what_waited_for_it_to_start_did_not_arrive() -> None:
    async with asyncio.timeout(30), apart(SETTINGS) as send:
        waiting = asyncio.create_task(send(outgoing(), never))
        await until(lambda: bool(sending_processes()))
        for pid in sending_processes():
            os.kill(pid, signal.SIGKILL)
        attempted = await waiting
    assert attempted.error is None  # it goes out by the next one


async def test_another_version_on_the_disk_is_said_and_nothing_is_sent_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.sending.apart.VERSION", "0.0.1")
    with capture_logs() as logs:
        async with apart(SETTINGS) as send:
            attempted = await send(outgoing(seconds=3), never)
    assert attempted.error is not None
    assert (attempted.error.detail, attempted.error.maybe_arrived) == ("no sending process could be started", False)
    said = {entry["event"] for entry in logs if entry["log_level"] == "error"}
    assert said == {"another version is installed than the one that runs; restart the relay"}


async def test_a_defect_in_keeping_ends_the_send_and_tells_nothing_of_itself(send: Send) -> None:
    async def keep(_progress: Progress) -> None:
        raise ValueError("xoxb-secret")

    with capture_logs() as logs:
        error = (await send(outgoing("keep"), keep)).error
    assert error is not None
    assert error.detail == "the outbox was not available in the middle of it: a defect: ValueError"
    assert [(entry["event"], entry["error"]) for entry in logs] == [("progress could not be kept", "ValueError")]
    assert "xoxb" not in str(logs)


async def test_an_answer_that_came_while_the_relay_was_stopped_counts(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.sending.apart._OVERDUE", 0.0)
    first = await process_of(send)
    sending = asyncio.create_task(send(outgoing(seconds=0.5), never))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is said by now
    time.sleep(1)  # noqa: ASYNC251  # as if the process was stopped
    assert (await sending).receipt is not None
    await asyncio.sleep(0.5)  # longer than the look at what it said meanwhile
    assert await process_of(send) == first


@pytest.mark.parametrize("how", ["blocked", "stopped"])
async def test_one_that_says_nothing_is_killed(send: Send, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.sending.apart._OVERDUE", 0.5)
    first = await process_of(send)
    if how == "stopped":
        os.kill(first, signal.SIGSTOP)
    attempted = await send(outgoing("block", seconds=0.5), never)
    assert attempted.error is not None
    assert attempted.error.maybe_arrived
    assert await process_of(send) != first
    await until(lambda: is_gone(first))


async def test_a_send_that_nobody_waits_for_is_stopped(send: Send) -> None:
    await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang"), never))
    await until(lambda: hang_there(send, 1))
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await until(lambda: hang_there(send, 0))


async def test_where_none_can_be_started_nothing_is_lost_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with capture_logs() as logs:
        async with apart(SETTINGS) as send:
            attempted = await send(outgoing(seconds=0.2), never)
    assert attempted.error is not None
    assert (attempted.error.detail, attempted.error.maybe_arrived) == ("no sending process could be started", False)
    assert any(entry["event"] == "the sending process cannot be started" for entry in logs)


@pytest.mark.parametrize("note", ["hang", "block"])
async def test_at_the_end_it_is_gone_whatever_it_does(note: str) -> None:
    async with asyncio.timeout(30), apart(SETTINGS) as send:
        pid = await process_of(send)
        hanging = asyncio.create_task(send(outgoing(note), never))
        await asyncio.sleep(0.1)
    assert is_gone(pid)
    ending: Attempted = await hanging
    assert ending.error is not None
    assert ending.error.maybe_arrived


async def test_signals_to_all_processes_do_not_end_it(send: Send) -> None:
    pid = await process_of(send)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert await process_of(send) == pid
