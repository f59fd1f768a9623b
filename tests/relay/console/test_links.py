"""A figure of a page links to a list of exactly what was counted."""

import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import aiohttp
import pytest

from services.relay.preview import pages as deferred_part
from tests.relay.served_relay import Scripted, post, served, settings, webhook_of


async def read(client: aiohttp.ClientSession, path: str) -> str:
    async with client.get(path) as answer:
        assert answer.status == 200
        return await answer.text()


async def follow(client: aiohttp.ClientSession, page: str, text: str) -> Sequence[str]:
    """The incidents on the list behind the link that begins with a text."""
    href = re.search(rf'<a href="(/incidents\?[^"]*)">{text}', await read(client, page))
    assert href is not None
    listed = await read(client, unescape(href[1]))
    return re.findall(r'<h2><a href="/incidents/[^"]*">([^<]*)</a>', listed)


def webhook(alertname: str, status: str = "firing") -> bytes:
    return webhook_of(status, group=alertname).replace(b"KMSCryptoModeNotKMS", alertname.encode())


async def test_figures_of_incidents_lead_to_the_incidents_that_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_part, "_MAX_WAIT", 10.0)
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        await post(client, webhook("KMSHighLatency"))
        await post(client, webhook("KMSHighLatency", "resolved"))
        await post(client, webhook("KMSCanaryLost"))
        for page, text in (("/", "<b>1</b> open incident"), ("/report?since=1h", "KMSCanaryLost</a>")):
            (title,) = await follow(client, page, text)
            assert "KMSCanaryLost" in title
