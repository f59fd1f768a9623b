"""A sending process."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.relay.sending.apart import apart
from services.relay.sending.outgoing import Send
from tests.relay.sending.sends import SETTINGS


@pytest.fixture
async def send() -> AsyncIterator[Send]:
    async with asyncio.timeout(50), apart(SETTINGS) as send:
        yield send
