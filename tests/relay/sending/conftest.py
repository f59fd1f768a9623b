"""A sending process."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.relay.sending.apart import open_sender_process
from services.relay.sending.outgoing import Sender
from tests.relay.sending.sends import SETTINGS


@pytest.fixture
async def send() -> AsyncIterator[Sender]:
    async with asyncio.timeout(50), open_sender_process(SETTINGS) as send:
        yield send
