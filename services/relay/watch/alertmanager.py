"""What an Alertmanager holds now, by its API: since when it is up, and the alerts that it knows, muted ones included.

https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

import msgspec

from services.relay.channels.channel import SendError
from services.relay.channels.web_api import Session, reached
from services.relay.parsing import parse_apart
from shared.secret_file import SecretFile, SecretUnreadableError
from shared.wire import WireError, decode

_ANSWER_SECONDS: Final = 10.0
_ANSWER_LIMIT: Final = 16 * 1024 * 1024
"""Bytes."""
_ALERTS: Final = "/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true"


class PeerError(Exception):
    """An Alertmanager cannot be asked; the message says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Active:
    """An alert that fires and is neither silenced nor inhibited."""

    starts_at: datetime
    receivers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Known:
    """What one Alertmanager knows."""

    since: float
    """When it started, in unix seconds by its clock."""
    labels: Mapping[str, Mapping[str, str]]
    """Of every alert that has not ended, whether it is told of or not, by fingerprint."""
    active: Mapping[str, Active]
    """Those of them that are told of, likewise."""


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _Status(msgspec.Struct):
    uptime: _Moment  # in spite of its name the moment of its start


class _Receiver(msgspec.Struct, gc=False):
    name: str


class _AlertStatus(msgspec.Struct, gc=False):
    state: str  # active, suppressed, unprocessed


class _Alert(msgspec.Struct, rename="camel", gc=False):
    fingerprint: str
    labels: dict[str, str]
    starts_at: _Moment
    receivers: list[_Receiver]
    status: _AlertStatus


_STATUS: Final = msgspec.json.Decoder(_Status)
_LISTED: Final = msgspec.json.Decoder(list[_Alert])


class Peer:
    """One Alertmanager.

    Args:
        url: of its root; its `--web.external-url` may have a path.
        token: sent as Bearer; None sends nothing.
    """

    def __init__(self, url: str, token: SecretFile | None) -> None:
        self.url = url
        self._token = token
        self._session = Session("Alertmanager")

    async def ask(self) -> Known:
        """What it knows now. Raises PeerError."""
        try:
            status = await parse_apart(partial(decode, _STATUS, await self._get("/api/v2/status")))
            body = await self._get(_ALERTS)
            return await parse_apart(partial(_known, status.uptime.timestamp(), body))
        except TimeoutError:
            raise PeerError(f"no answer within {_ANSWER_SECONDS:g} s") from None
        except (SendError, SecretUnreadableError) as error:
            raise PeerError(str(error)) from None
        except (WireError, OverflowError):  # the latter for a time near the year 1 or 9999
            raise PeerError("its answer is not that of Alertmanager's API, version 2") from None

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _get(self, path: str) -> bytes:
        body = bytearray()
        with reached("Alertmanager"):
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                self._session.get().get(self.url + path, headers=self._headers()) as answer,
            ):
                if answer.status != 200:
                    raise PeerError(f"it answered HTTP {answer.status}")
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _ANSWER_LIMIT:
                        raise PeerError(f"its answer is over {_ANSWER_LIMIT} bytes")
        return bytes(body)

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._token.value()}"} if self._token else {}


def _known(since: float, body: bytes) -> Known:
    alerts = decode(_LISTED, body)
    active = {
        alert.fingerprint: Active(alert.starts_at.astimezone(UTC), frozenset(each.name for each in alert.receivers))
        for alert in alerts
        if alert.status.state == "active"
    }
    return Known(since, {alert.fingerprint: alert.labels for alert in alerts}, active)
