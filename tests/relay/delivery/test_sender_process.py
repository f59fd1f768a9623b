"""What goes to the sending process comes back as it was, each send by itself."""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from services.relay.channels.port import DeliveryLeaseLostError, Progress, SendReason, SendScope
from services.relay.delivery.attempt import ProgressNotSavedError, Sender
from services.relay.delivery.sender_process import open_sender_process
from tests.relay.delivery.scripted_channel import REFUSED
from tests.relay.delivery.sender_tasks import SETTINGS, hang_there, never, outgoing, process_of
from tests.relay.served_relay import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def send() -> AsyncIterator[Sender]:
    """One for all tests here, for none of them ends it and its start takes longer than most of them."""
    async with open_sender_process(SETTINGS) as send:
        yield send


async def test_a_message_is_made_and_sent_in_another_process(send: Sender) -> None:
    attempted = await send(outgoing(), never)
    assert attempted.receipt is not None
    assert int(attempted.receipt["process"]) != os.getpid()
    assert attempted.payload is not None
    summary = "firing https://docs.example.org/#kmscryptomodenotkms {'owner': '#team'}"
    assert zlib.decompress(attempted.payload).decode() == summary
    assert (attempted.reply, attempted.error, attempted.lease_lost) == ("taken", None, False)


async def test_a_thousand_at_once_get_each_its_own_ending(send: Sender) -> None:
    remarks = ["", "refuse", "fail", "keep"] * 250
    stored: list[Progress] = []

    async def keep(progress: Progress) -> None:
        stored.append(progress)

    endings = await asyncio.gather(*(send(outgoing(remark), keep) for remark in remarks))
    reasons = [None if each.error is None else each.error.reason for each in endings]
    assert reasons == [None, SendReason.RATE_LIMITED, SendReason.INTERNAL, None] * 250
    assert stored == [{"told": "one of two"}] * 250


async def test_an_error_comes_over_as_it_was_and_a_defect_without_its_text(send: Sender) -> None:
    refused, failed = [(await send(outgoing(remark), never)).error for remark in ("refuse", "fail")]
    assert refused is not None
    assert (vars(refused), str(refused)) == (vars(REFUSED), "later ü")
    assert failed is not None
    assert (failed.reason, str(failed), failed.maybe_arrived) == (SendReason.INTERNAL, "a defect: ValueError", True)


async def test_progress_is_kept_before_the_send_goes_on(send: Sender) -> None:
    stored: list[Progress] = []

    async def keep(progress: Progress) -> None:
        await asyncio.sleep(0.05)
        stored.append(progress)

    attempted = await send(outgoing("keep"), keep)
    assert stored == [{"told": "one of two"}]
    assert attempted.receipt is not None
    assert attempted.receipt["progress"] == "{'told': 'one of two'}"


@pytest.mark.parametrize(
    ("raised", "reason", "detail"),
    [
        (DeliveryLeaseLostError(), SendReason.TIMEOUT, "the lease ended between two requests"),
        (
            ProgressNotSavedError("it is locked"),
            SendReason.INTERNAL,
            "the outbox was not available during the attempt: it is locked",
        ),
    ],
)
async def test_what_cannot_be_kept_ends_the_send(
    send: Sender, raised: Exception, reason: SendReason, detail: str
) -> None:
    async def keep(_progress: Progress) -> None:
        raise raised

    error = (await send(outgoing("keep"), keep)).error
    assert error is not None
    assert (error.reason, error.scope, str(error), error.maybe_arrived) == (reason, SendScope.ATTEMPT, detail, True)


@pytest.mark.parametrize("lease", [0.0, 19.0, 20.3])  # the send may take 20 s, and it takes a moment to kill who sends
async def test_nothing_is_sent_that_could_outlast_its_lease(send: Sender, lease: float) -> None:
    assert (await send(outgoing(seconds=20.0, lease=lease), never)).lease_lost


async def test_nothing_is_written_where_the_lease_ended_after_its_first_check(send: Sender) -> None:
    await process_of(send)
    attempted = await send(outgoing("stopped", seconds=0.3), never)
    assert attempted.lease_lost
    assert (attempted.error, attempted.payload) == (None, None)


async def test_a_send_that_hangs_ends_in_time_and_the_others_go_on(send: Sender) -> None:
    await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang", seconds=1.0), never))
    assert await process_of(send)
    error = (await hanging).error
    assert error is not None
    assert (error.reason, error.maybe_arrived) == (SendReason.TIMEOUT, True)


async def test_a_defect_in_saving_progress_ends_the_send_and_its_text_is_not_logged(send: Sender) -> None:
    async def keep(_progress: Progress) -> None:
        raise ValueError("xoxb-secret")

    with capture_logs() as logs:
        error = (await send(outgoing("keep"), keep)).error
    assert error is not None
    assert str(error) == "the outbox was not available during the attempt: a defect: ValueError"
    assert [(entry["event"], entry["error"]) for entry in logs] == [("progress could not be saved", "ValueError")]
    assert "xoxb" not in str(logs)


async def test_a_send_that_nobody_waits_for_is_stopped(send: Sender) -> None:
    await process_of(send)
    hanging = asyncio.create_task(send(outgoing("hang"), never))
    await until(lambda: hang_there(send, 1))
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await until(lambda: hang_there(send, 0))
