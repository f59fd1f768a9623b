"""A sending process."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.relay.delivery.attempt import Sender
from services.relay.delivery.sender_process import open_sender_process
from tests.relay.delivery.sender_tasks import SETTINGS


@pytest.fixture
async def send() -> AsyncIterator[Sender]:
    async with asyncio.timeout(50), open_sender_process(SETTINGS) as send:
        yield send
