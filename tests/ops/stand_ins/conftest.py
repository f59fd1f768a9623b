"""Running stand-ins on free ports, and the official clients that talk to them."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns, run_stand_ins

TOKEN = "xoxb-test"


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with run_stand_ins() as running:
        yield running


@pytest.fixture
async def http(stand_ins: StandIns) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{stand_ins.http}", timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


@pytest.fixture
def slack(stand_ins: StandIns) -> AsyncWebClient:
    return AsyncWebClient(TOKEN, base_url=stand_ins.slack_api_url, retry_handlers=[], timeout=20)
