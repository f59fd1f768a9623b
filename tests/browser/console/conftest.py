"""A relay with a real history, and its console in Chromium."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.browser.console.served_console import Console, open_console


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def console(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    """One for all tests of a process: a test that needs another state opens its own."""
    async with open_console(tmp_path_factory.mktemp("console")) as running:
        yield running
