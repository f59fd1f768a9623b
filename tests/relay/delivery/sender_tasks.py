"""Tasks for the tests of the sender process, and how to observe it."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.relay.channels.port import Progress
from services.relay.delivery.attempt import Sender, SenderSettings
from services.relay.delivery.message import LinkRules
from services.relay.model import DeliveryTask, encode_event
from tests.relay.delivery.scripted_channel import RemarkDrivenSettings
from tests.relay.served_relay import event_of

LINKS = LinkRules("https://docs.example.org/#{alertname_lower}", None, allow_hosts=("docs.example.org",))
SETTINGS = SenderSettings({"odd": RemarkDrivenSettings()}, LINKS, {"owner": "#team"}, 10)


async def never(progress: Progress) -> None:
    pytest.fail(f"{progress} was to be kept")


def outgoing(remark: str = "", *, seconds: float = 60.0, lease: float = 120.0) -> DeliveryTask:
    now = asyncio.get_running_loop().time()
    encoded = encode_event(event_of())
    return DeliveryTask(
        channel="odd",
        delivery_id="d",
        incident_id="i",
        episode=1,
        accepted_at=datetime(2026, 1, 1, tzinfo=UTC),
        event_json=encoded,
        events_size=len(encoded),
        remark=remark,
        age=1.5,
        attempt_ends=now + seconds,
        lease_ends=now + lease,
    )


async def process_of(send: Sender) -> int:
    attempted = await send(outgoing(), never)
    assert attempted.receipt is not None
    return int(attempted.receipt["process"])


def sending_processes(relay: int | None = None) -> list[int]:
    """Those that the main thread of a relay has started; None is this process, which may have other children."""
    pid = relay or os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if b"services.relay.delivery.sender_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def hang_there(send: Sender, number: int) -> bool:
    receipt = (await send(outgoing(), never)).receipt
    return receipt is not None and receipt["hanging"] == str(number)


def has_exited(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
