"""A real relay in front of the stand-ins, with webhooks accepted and delivered, and a client that holds its token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, Page

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from services.relay.config import RelaySettings
from shared.config.settings import Address
from tests.browser.lasting_page import lasting_page
from tests.relay.served_relay import ANY_PORT, TOKEN, payload, post, served, until, webhook_of

ROUTING_KEY = "0" * 32


@dataclass
class Console:
    """A running relay whose console is open to everybody on this machine."""

    client: aiohttp.ClientSession
    """Holds the token of Alertmanager."""
    stand_ins: StandIns
    url: str

    async def post(self, status: str = "firing", *, group: str = "one", **changes: Any) -> None:
        """A webhook is accepted."""
        assert (await post(self.client, webhook_of(status, group=group, **changes)))[0] in {200, 202}

    async def settle(self) -> None:
        """Until every delivery is finished."""

        async def is_settled() -> bool:
            async with self.client.get("/api/deliveries?limit=1000") as answer:
                rows = (await answer.json())["deliveries"]
            return all(row["state"] in {"delivered", "superseded", "dead"} for row in rows)

        await until(is_settled, 60.0, pause=0.05)  # it costs the relay more than most conditions


def build_settings(folder: Path, stand_ins: StandIns, **keys: Any) -> RelaySettings:
    """Slack, mail and PagerDuty, all of them the stand-ins'."""
    for name, value in {"token": TOKEN, "bot": "xoxb-test", "key": ROUTING_KEY}.items():
        (folder / name).write_text(value)
        (folder / name).chmod(0o600)
    host, port = stand_ins.smtp.host, stand_ins.smtp.port
    channels = {
        "slack": {
            "kind": "slack",
            "channel": "#security-critical",
            "token_file": folder / "bot",
            "api_url": stand_ins.slack_api_url,
        },
        "email": {
            "kind": "email",
            "host": host,
            "port": port,
            "tls": "none",
            "from": "alerts@example.org",
            "to": ["oncall@example.org"],
        },
        "pagerduty": {
            "kind": "pagerduty",
            "routing_key_file": folder / "key",
            "url": f"http://{stand_ins.http}/pagerduty/v2/enqueue",
        },
    }
    document: dict[str, Any] = {
        "database": f"sqlite:///{folder}/relay.db",
        "environment": "staging",
        "auth": {"bearer_token_file": folder / "token"},
        "channels": {**channels, **keys.pop("channels", {})},
        "default_channels": list(channels),
        **keys,
    }
    return RelaySettings(**document)


@asynccontextmanager
async def open_console(folder: Path, address: Address = ANY_PORT, **keys: Any) -> AsyncIterator[Console]:
    """A relay with some history: real payloads accepted, delivered, one incident open and one resolved.

    Its channels are checked by people alone: by itself it would begin in the middle of a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.relay.channel_health.checks._START_DELAY", 86400.0)
        async with run_stand_ins() as stand_ins, served(build_settings(folder, stand_ins, **keys), address) as client:
            console = Console(client, stand_ins, str(client._base_url).rstrip("/"))
            for number in (1, 3, 7):
                assert (await post(client, payload(number)))[0] in {200, 202}
            await console.post(group="past")
            await console.settle()
            await console.post("resolved", group="past")
            await console.settle()
            yield console


@asynccontextmanager
async def open_page(
    chromium: Browser, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light", is_live: bool = True
) -> AsyncIterator[Page]:
    """A page of the console, live unless it has no stream.

    The browser must have nothing to complain of, and ask nobody else for anything.
    """
    browser_errors: list[str] = []
    requested: list[str] = []
    size = {"width": width, "height": height}
    async with lasting_page(chromium, browser_errors, requested, **size, scheme=scheme, reduced_motion=True) as page:
        await page.goto(url)
        if is_live:
            await page.locator("#live.on").wait_for()
        yield page
        own = (_get_origin(url), "data:", "about:")
        browser_errors += [each for each in requested if not each.startswith(own)]
        assert browser_errors == [], browser_errors


async def record_reloads(page: Page) -> None:
    """From now on the page records what made it load a part of itself again, until it is left."""
    await page.evaluate(
        """() => {
          window.reloadedBy = [];
          document.body.addEventListener("htmx:beforeSwap", ({ detail }) =>
            reloadedBy.push(detail.requestConfig.triggeringEvent?.type ?? "every"));
        }"""
    )


async def check_reloads(page: Page) -> None:
    """It does so since then because the stream says so: by itself it does every half a minute, which may be before."""
    await page.wait_for_function("() => reloadedBy.includes('sse:changed')")


def _get_origin(url: str) -> str:
    return "/".join([*url.split("/")[:3], ""])
