"""A name server that does not answer for one provider's name delays no other channel, nor anything else."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.relay.channels.port import SendError, SendReason
from services.relay.channels.webhook import WebhookSettings
from tests.hanging_name_server import hanging_for
from tests.relay.channels.email.mail_server import UNBOUND
from tests.relay.channels.examples import example, message, settings
from tests.relay.channels.recording_attempt import send

HANGS = "provider.hangs"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks for HANGS, or for this machine's own name, waits."""
    with hanging_for(HANGS, monkeypatch) as end:
        monkeypatch.setattr(socket, "getfqdn", lambda: str(end.wait(60)))
        monkeypatch.setattr("shared.net.egress._own_name_lookup", [])
        yield


@pytest.mark.usefixtures("hanging")
async def test_channels_whose_names_hang_time_out_and_take_no_thread_from_the_others(secret_file: Path) -> None:
    def webhook(host: str, timeout: float = 0.2) -> Any:
        return WebhookSettings(kind="webhook", url=f"https://{host}/", token_file=secret_file).connect(timeout)

    def mail(host: str) -> Any:
        document = example("email", secret_file, UNBOUND) | {"host": host, "port": 25, "tls": "starttls"}
        return settings(document).connect(0.2)

    hang = [webhook(f"{n}.{HANGS}") for n in range(40)]
    hang += [mail(f"{n}.{HANGS}") for n in range(40)]
    beside = webhook("localhost", 20)  # where nobody listens
    async with asyncio.timeout(30), AsyncExitStack() as stack:
        for channel in (*hang, beside):
            stack.push_async_callback(channel.close)
        ended = await asyncio.gather(*(send(each, message()) for each in hang), return_exceptions=True)
        assert {each.reason for each in ended if isinstance(each, SendError)} == {SendReason.TIMEOUT}
        assert len(ended) == 80
        assert await asyncio.to_thread(lambda: "done") == "done"
        with pytest.raises(SendError) as failed:
            await send(beside, message())
    assert failed.value.reason is SendReason.CONNECTION
