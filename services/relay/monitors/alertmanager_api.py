"""Reads an Alertmanager's API: since when it is up, and its alerts, muted ones included.

https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

import msgspec

from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.send_error import SendError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.net.egress import EgressSettings
from shared.process.concurrency import run_large

_REPLY_TIMEOUT: Final = 10.0
_MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""Bytes."""
_ALERTS_PATH: Final = "/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true"


class AlertmanagerError(Exception):
    """An Alertmanager cannot be read; the text says why, without secrets."""


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """An alert that fires and is neither silenced nor inhibited."""

    starts_at: datetime
    receivers: frozenset[str]


@dataclass(frozen=True, slots=True)
class AlertmanagerState:
    """The state of one Alertmanager."""

    started_at: float
    """When it started, in unix seconds by its clock."""
    labels_by_fingerprint: Mapping[str, Mapping[str, str]]
    """The labels of every alert that is not resolved, muted or not, by fingerprint."""
    active_by_fingerprint: Mapping[str, ActiveAlert]
    """Those of them that are not muted, by fingerprint."""


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _ServerStatus(msgspec.Struct):
    uptime: _Moment  # in spite of its name the moment of its start


class _Configuration(msgspec.Struct):
    original: str


class _ConfiguredStatus(msgspec.Struct):
    config: _Configuration


class _Receiver(msgspec.Struct, gc=False):
    name: str


class _AlertStatus(msgspec.Struct, gc=False):
    state: str  # active, suppressed, unprocessed


class _ListedAlert(msgspec.Struct, rename="camel", gc=False):
    fingerprint: str
    labels: dict[str, str]
    starts_at: _Moment
    receivers: list[_Receiver]
    status: _AlertStatus


_CONFIGURED: Final = msgspec.json.Decoder(_ConfiguredStatus)
_STATUS: Final = msgspec.json.Decoder(_ServerStatus)
_ALERT_LIST: Final = msgspec.json.Decoder(list[_ListedAlert])


class AlertmanagerClient:
    """One Alertmanager.

    Args:
        url: of its root; its `--web.external-url` may have a path.
        token: sent as Bearer; None sends nothing.
        egress: how it is reached.
    """

    def __init__(self, url: str, token: SecretFile | None, egress: EgressSettings | None = None) -> None:
        self.url = url
        self._token = token
        self._session = HttpSession("Alertmanager", egress=egress)

    async def read_state(self) -> AlertmanagerState:
        """Its current state. Raises AlertmanagerError."""
        try:
            status = await run_large(partial(decode_json, _STATUS, await self._get("/api/v2/status")))
            body = await self._get(_ALERTS_PATH)
            return await run_large(partial(_build_state, status.uptime.timestamp(), body))
        except TimeoutError:
            raise AlertmanagerError(f"no answer within {_REPLY_TIMEOUT:g} s") from None
        except (SendError, SecretUnreadableError) as error:
            raise AlertmanagerError(str(error)) from None
        except (UntrustedJsonError, OverflowError):  # the latter for a time near the year 1 or 9999
            raise AlertmanagerError("its answer is not that of Alertmanager's API, version 2") from None

    async def read_configuration(self) -> str:
        """Its configuration in YAML, secrets and URLs masked. Raises AlertmanagerError."""
        try:
            document = decode_json(_CONFIGURED, await self._get("/api/v2/status"))
        except TimeoutError:
            raise AlertmanagerError(f"no answer within {_REPLY_TIMEOUT:g} s") from None
        except (SendError, SecretUnreadableError) as error:
            raise AlertmanagerError(str(error)) from None
        except UntrustedJsonError:
            raise AlertmanagerError("its answer is not that of Alertmanager's API, version 2") from None
        return document.config.original

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _get(self, path: str) -> bytes:
        body = bytearray()
        with translate_connection_errors("Alertmanager"):
            async with (
                asyncio.timeout(_REPLY_TIMEOUT),
                self._session.open().get(self.url + path, headers=self._headers()) as answer,
            ):
                if answer.status != 200:
                    raise AlertmanagerError(f"it answered HTTP {answer.status}")
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_REPLY_BYTES:
                        raise AlertmanagerError(f"its answer is over {_MAX_REPLY_BYTES} bytes")
        return bytes(body)

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._token.read_value()}"} if self._token else {}


def _build_state(started_at: float, body: bytes) -> AlertmanagerState:
    alerts = decode_json(_ALERT_LIST, body)
    active = {
        alert.fingerprint: ActiveAlert(
            alert.starts_at.astimezone(UTC), frozenset(each.name for each in alert.receivers)
        )
        for alert in alerts
        if alert.status.state == "active"
    }
    return AlertmanagerState(started_at, {alert.fingerprint: alert.labels for alert in alerts}, active)
