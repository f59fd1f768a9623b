"""What the relay's tests share: a scripted channel, events, settings, and a relay on a real server."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from services.relay.app import run_relay
from services.relay.channels.port import Attempt, Channel, ChannelSettings, EditingChannel, Receipt
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.intake import endpoint
from services.relay.intake import webhook as webhook_parser
from services.relay.model import Event, Message
from shared.check import Check
from shared.config.settings import Address
from shared.http.limits import AdmissionQueue
from shared.http.server import serve

PAYLOADS = sorted((Path(__file__).parent / "payloads").glob("*.json"))
TOKEN = "a-token-of-alertmanager"
Step = BaseException | Callable[[], Awaitable[None]]


class Scripted:
    """A channel. Each send takes the next step of the script (raises it or awaits it); after the last, all succeed."""

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.secret = 0
        self.attempted: list[tuple[float, Message]] = []
        self.sent: list[Message] = []
        self.in_progress = 0
        self.most_in_progress = 0
        self.closed = False

    async def send(self, attempt: Attempt) -> Receipt:
        message = attempt.message
        attempt.before_request(self.render_payload(message))
        self.attempted.append((asyncio.get_running_loop().time(), message))
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            step = self.script.pop(0) if self.script else None
            if isinstance(step, BaseException):
                raise step
            if step is not None:
                await step()
        finally:
            self.in_progress -= 1
        self.sent.append(message)
        attempt.record_reply("taken")
        return {"number": str(len(self.sent))}

    def render_payload(self, message: Message) -> str:
        return f"{message.task.delivery_id}: {message.event.status}"

    def read_secret_versions(self) -> int:
        return self.secret

    def list_checks(self, key: str) -> Sequence[Check]:  # noqa: ARG002  # the port's
        return ()

    async def close(self) -> None:
        self.closed = True


class ScriptedEdits(Scripted):
    """One that edits its messages, too; each edit takes the next step of a script of its own."""

    def __init__(self, *script: Step) -> None:
        super().__init__()
        self.edits = Scripted(*script)
        self.receipt: Receipt | None = None
        """The receipt of an edit; None for that of the message that it edits."""

    async def edit(self, attempt: Attempt) -> Receipt:
        await self.edits.send(attempt)
        return self.receipt or attempt.message.task.first_receipt or {}


class ScriptedSettings(ChannelSettings):
    kind: str = "scripted"
    channel: Any

    def edit_scope(self) -> str | None:
        return "scripted" if isinstance(self.channel, EditingChannel) else None

    def connect(self, timeout: float) -> Channel:  # noqa: ARG002  # the port's
        channel: Channel = self.channel
        return channel


async def hang() -> None:
    await asyncio.Event().wait()


def settings(folder: Path, channels: dict[str, Scripted], **keys: Any) -> RelaySettings:
    """A configuration whose channels are scripted ones; every event goes to all of them unless `keys` say else."""
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "key").write_text("0" * 32)
    auth = {"bearer_token_file": folder / "token", **keys.pop("auth", {})}
    document = {
        "database": f"sqlite:///{folder}/relay.db",
        "auth": auth,
        "channels": {name: {"kind": "pagerduty", "routing_key_file": str(folder / "key")} for name in channels},
        "default_channels": list(channels),
        **keys,
    }
    real = RelaySettings(**document)
    return real.model_copy(update={"channels": {name: ScriptedSettings(channel=c) for name, c in channels.items()}})


ANY_PORT = Address("127.0.0.1", 0)


@asynccontextmanager
async def served(
    settings: RelaySettings, address: Address = ANY_PORT, **options: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """The relay behind a real server, and a client that holds the token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    admission = AdmissionQueue(b"POST /alerts", endpoint.MAX_CONCURRENT_WEBHOOKS, endpoint.ADMISSION_SECONDS)
    async with (
        run_relay(settings, open_sender=open_local_sender, **options) as app,
        serve(app, address, admission_queue=admission) as own_address,
        aiohttp.ClientSession(f"http://{own_address}", headers=headers) as client,
    ):
        try:
            yield client
        finally:
            app.state.stop()  # as `services.relay.app.serve` does: no open page keeps the server


async def post(client: aiohttp.ClientSession, body: bytes, path: str = "/alerts") -> tuple[int, dict[str, Any]]:
    async with client.post(path, data=io.BytesIO(body)) as response:
        return response.status, await response.json()


async def metric(client: aiohttp.ClientSession, name: str, **labels: str) -> float | None:
    """The value of a sample at /metrics; None where it is absent."""
    wanted = "".join(f',{key}="{value}"' for key, value in sorted(labels.items()))
    wanted = f"{name}{{{wanted[1:]}}}" if labels else name
    async with client.get("/metrics") as response:
        for line in (await response.text()).splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == wanted:
                return float(value)
    return None


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0, *, pause: float = 0.01) -> None:
    """Returns once `condition` holds; a test whose condition never does fails here."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(pause)


async def reaches(client: aiohttp.ClientSession, value: float, name: str, **labels: str) -> None:
    """Returns once a sample has this value; a test whose sample never does fails here."""

    async def there() -> bool:
        return await metric(client, name, **labels) == value

    await until(there)


def payload(number: int) -> bytes:
    return PAYLOADS[number - 1].read_bytes()


def webhook_of(status: str = "firing", *, group: str = "one", **changes: Any) -> bytes:
    """A webhook with one alert; `changes` replace its top-level fields."""
    document = json.loads(payload(1)) | {"groupKey": f"{{}}:{{{group}}}", "status": status}
    document["alerts"][0] |= {"status": status}
    return json.dumps(document | changes).encode()


def event_of(status: str = "firing", *, group: str = "one", **changes: Any) -> Event:
    event = webhook_parser.parse_whole_event(webhook_of(status, group=group), "")
    return replace(event, **changes)


def with_labels(event: Event, *labels: dict[str, str]) -> Event:
    """The event with one alert for each of `labels`."""
    return replace(event, alerts=tuple(replace(event.alerts[0], labels=each) for each in labels))


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def statuses(messages: Iterable[Message]) -> list[str]:
    return [message.event.status.value for message in messages]
