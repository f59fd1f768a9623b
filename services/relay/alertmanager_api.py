"""An Alertmanager's API: since when it is up, its alerts, muted ones included, and its silences.

https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """An Alertmanager does not do what it was asked for; the text says why, without secrets.

    Args:
        text: why.
        is_refusal: whether it answered that it will not, so that it has certainly done nothing.
    """

    def __init__(self, text: str, *, is_refusal: bool = False) -> None:
        super().__init__(text)
        self.is_refusal = is_refusal


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise AlertmanagerError(f"no answer within {_REPLY_TIMEOUT:g} s") from None
    except SendError as error:
        raise AlertmanagerError(str(error), is_refusal=not error.maybe_arrived) from None
    except SecretUnreadableError as error:
        raise AlertmanagerError(str(error), is_refusal=True) from None
    except (UntrustedJsonError, OverflowError):  # the latter for a time near the year 1 or 9999
        raise AlertmanagerError("its answer is not that of Alertmanager's API, version 2") from None


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


@dataclass(frozen=True, slots=True)
class NewSilence:
    """A silence of the alerts that have exactly these values of labels."""

    labels: Mapping[str, str]
    ends_at: float
    """Unix seconds."""
    created_by: str
    comment: str


class _SilenceStatus(msgspec.Struct, gc=False):
    state: str  # expired, active, pending


class FoundSilence(msgspec.Struct, rename="camel", gc=False):
    """A silence as Alertmanager lists it."""

    id: str
    comment: str
    created_by: str
    status: _SilenceStatus


class _CreatedSilence(msgspec.Struct, rename={"silence_id": "silenceID"}):
    silence_id: str


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
_SILENCE_LIST: Final = msgspec.json.Decoder(list[FoundSilence])
_CREATED: Final = msgspec.json.Decoder(_CreatedSilence)
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
        with _translate_errors():
            status = await run_large(partial(decode_json, _STATUS, await self._get("/api/v2/status")))
            body = await self._get(_ALERTS_PATH)
            return await run_large(partial(_build_state, status.uptime.timestamp(), body))

    async def read_configuration(self) -> str:
        """Its configuration in YAML, secrets and URLs masked. Raises AlertmanagerError."""
        with _translate_errors():
            return decode_json(_CONFIGURED, await self._get("/api/v2/status")).config.original

    async def find_silence(self, mark: str) -> FoundSilence | None:
        """A silence whose comment has this mark, and that has not ended. Raises AlertmanagerError."""
        with _translate_errors():
            listed = await run_large(partial(decode_json, _SILENCE_LIST, await self._get("/api/v2/silences")))
        return next((each for each in listed if mark in each.comment and each.status.state != "expired"), None)

    async def create_silence(self, silence: NewSilence, now: float) -> str:
        """Create a silence; its ID. Each call makes another one.

        Raises:
            AlertmanagerError: it was refused, or nobody knows whether it was created: see `is_refusal`.
        """
        document = {
            "matchers": [
                {"name": name, "value": value, "isRegex": False, "isEqual": True}
                for name, value in silence.labels.items()
            ],
            "startsAt": datetime.fromtimestamp(now, UTC).isoformat(),
            "endsAt": datetime.fromtimestamp(silence.ends_at, UTC).isoformat(),
            "createdBy": silence.created_by,
            "comment": silence.comment,
        }
        with _translate_errors():
            return decode_json(_CREATED, await self._request("POST", "/api/v2/silences", document)).silence_id

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _get(self, path: str) -> bytes:
        return await self._request("GET", path)

    async def _request(self, method: str, path: str, document: object = None) -> bytes:
        body = bytearray()
        with translate_connection_errors("Alertmanager"):
            async with (
                asyncio.timeout(_REPLY_TIMEOUT),
                self._session.open().request(method, self.url + path, headers=self._headers(), json=document) as answer,
            ):
                if answer.status != 200:
                    raise AlertmanagerError(f"it answered HTTP {answer.status}", is_refusal=answer.status < 500)
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
