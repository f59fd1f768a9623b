"""The three servers under their memory limits, configured for hostile requests, and whether they live after them."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import yaml
from aiohttp import web

from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator.emulator import Emulator
from tests.faults.memory_limited_process import Limited, limited
from tests.relay.served_relay import until, webhook_of
from tests.sites import serve_site

KEY: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TOKEN: Final = "a-token-of-twenty-characters"
CHANNELS: Final = ("slack", "email", "pagerduty", "webhook", "log")


class Served:
    """A running server, and a client that has its token."""

    def __init__(self, limited: Limited, client: aiohttp.ClientSession, address: str) -> None:
        self.limited = limited
        self.client = client
        self.address = address

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        """The answer; 503 also where the server ends the connection at its deadline, as Alertmanager takes it."""
        try:
            async with self.client.post(path, data=io.BytesIO(body)) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError:
            raise  # it does not listen any more
        except aiohttp.ClientOSError as error:
            return 503, str(error)

    async def is_alive(self) -> None:
        async with self.client.get("/-/healthy") as answer:
            assert answer.status == 200
        assert not self.limited.over
        assert self.limited.process.poll() is None
        assert self.limited.peak < self.limited.limit

    def megabytes(self) -> str:
        return f"{self.limited.peak / 1024**2:.0f} of {self.limited.limit / 1024**2:.0f} MiB"


@asynccontextmanager
async def _serving(server: str, folder: Path, configuration: Mapping[str, object]) -> AsyncIterator[Served]:
    (folder / "token").write_text(TOKEN)
    file = folder / f"{server}.yml"
    file.write_text(yaml.safe_dump({"listen": "127.0.0.1:0", **configuration}))
    async with limited(server, ["--config", str(file)], folder) as running:
        address = await running.address()
        async with aiohttp.ClientSession(
            f"http://{address}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=aiohttp.ClientTimeout(total=120),
            connector=aiohttp.TCPConnector(force_close=True, limit=0),  # an answer may have ended a connection
        ) as client:
            yield Served(running, client, address)


@asynccontextmanager
async def relay(folder: Path) -> AsyncIterator[Served]:
    """A relay with a channel of each kind, which stand-ins provide; nothing keeps its pace."""
    (folder / "key").write_text("0" * 32)
    (folder / "slack_token").write_text("xoxb-test")
    async with run_stand_ins() as providers, serve_site(web.post("/", _take)) as hook:
        http = f"http://{providers.http}"
        mail = {"host": providers.smtp.host, "port": providers.smtp.port, "tls": "none"}
        kinds: dict[str, Mapping[str, object]] = {
            "slack": {"channel": "#security-ops", "token_file": "slack_token", "api_url": f"{http}/slack/api/"},
            "email": {**mail, "from": "relay@example.org", "to": ["person@example.org"]},
            "pagerduty": {"routing_key_file": "key", "url": f"{http}/pagerduty/v2/enqueue"},
            "webhook": {"url": f"{hook}/"},
            "log": {},
        }
        configuration = {
            "database": f"sqlite:///{folder}/relay.db",
            "auth": {"bearer_token_file": "token"},
            "channels": {name: {"kind": name, **keys} for name, keys in kinds.items()},
            "default_channels": list(CHANNELS),
            "environment": "demo",
            "pacing": {"enabled": False},
        }
        async with _serving("relay", folder, configuration) as served:
            yield served


async def accepted(served: Served, body: bytes, source: str) -> None:
    """Sends as Alertmanager does: again after a 503."""
    answers: list[int] = []

    async def post_all() -> bool:
        answers.append((await served.post(f"/alerts?source={source}", body))[0])
        return answers[-1] != 503

    await until(post_all, 120)
    assert answers[-1] in (200, 202), answers


async def delivers_a_usual_one(served: Served, source: str) -> None:
    """And all that was accepted before."""
    await accepted(served, webhook_of(group=source), source)
    deliveries: list[dict[str, str]] = []

    async def all_delivered() -> bool:
        async with served.client.get("/api/deliveries?limit=200") as answer:
            deliveries[:] = (await answer.json())["deliveries"]
        return not {each["state"] for each in deliveries} & {"queued", "sending", "retrying"}

    await until(all_delivered, 60)
    assert {each["channel"] for each in deliveries} == set(CHANNELS)
    assert {each["state"] for each in deliveries} <= {"delivered", "superseded"}, deliveries


@asynccontextmanager
async def backend(folder: Path, kms: Emulator) -> AsyncIterator[Served]:
    """A backend with its admin API."""
    configuration = {
        "database": f"sqlite:///{folder}/backend.db",
        "local_key_file": f"{folder}/local.key",
        "admin": {"token_file": "token"},
        "kms": {"provider": "gcp", "key": KEY, "endpoint": str(kms.address), "insecure": True},
    }
    async with _serving("backend", folder, configuration) as served:
        yield served


@asynccontextmanager
async def exporter(
    folder: Path, kms: Emulator, backends: dict[str, str], interval: str = "1s"
) -> AsyncIterator[Served]:
    """An exporter that reads `backends`: each a name, and the URL before `/healthz` and `/metrics`."""
    configuration = {
        "service": "backend",
        "probe": {"interval": interval, "timeout": interval},
        "targets": [{"name": "ledger", "provider": "gcp", "key": KEY, "endpoint": str(kms.address), "insecure": True}],
        "backends": [
            {"service": name, "health_url": f"{url}/healthz", "metrics_url": f"{url}/metrics"}
            for name, url in backends.items()
        ],
    }
    async with _serving("exporter", folder, configuration) as served:
        yield served


async def proves_kms(served: Served) -> None:
    """A probe of the target succeeds."""
    async with served.client.get("/probe?target=ledger") as answer:
        assert answer.status == 200
        assert "probe_success 1.0" in await answer.text()


async def _take(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()
