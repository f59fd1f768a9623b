"""`POST /alerts`: the body, then the commit, and only then the answer. Who may send is the guard's business.

Alertmanager asks again after a 5xx or a lost connection, and after nothing else: whatever may be our fault is a 503.
https://github.com/prometheus/alertmanager/blob/main/notify/util.go
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from services.relay import identity
from services.relay.identity import OWN_SOURCE
from services.relay.intake import quarantine, webhook
from services.relay.intake.heartbeat import Heartbeat, taken_out
from services.relay.intake.routing import Rule, route
from services.relay.metrics import Metrics
from services.relay.model import Event
from services.relay.outbox import watchdogs
from services.relay.outbox.accept import Incoming, Plan, accept
from services.relay.outbox.known import Known
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError

BODY_LIMIT: Final = 32 * 1024 * 1024
IN_HAND_LIMIT: Final = 2 * BODY_LIMIT
"""Bytes of all bodies that are being read or wait for their commit; a body that would need more is answered 503."""
BODY_SECONDS: Final = 30.0
"""How long a body may take to arrive."""
TURNS: Final = 64
"""How many webhooks are taken apart and committed at a time, so that thousands at once fit into memory."""
TURN_SECONDS: Final = 8.0
"""How long one that was read waits for its turn; then Alertmanager may ask again."""
_SOURCE_LIMIT: Final = 200
_ON_LOOP: Final = 64 * 1024
"""Bytes up to which reading a body is quicker than handing it over to a thread."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a person set about the intake."""

    routes: Sequence[Rule]
    default_channels: Sequence[str]
    channels: Collection[str]
    """Every channel that exists."""
    duplicate_window: float
    """Seconds."""
    heartbeats: Sequence[Heartbeat] = ()
    """The alerts that are signs of life, and no news."""


class _TooLargeError(Exception):
    """A body over the limit."""


class _NotNowError(Exception):
    """A body that cannot be taken now, and may be sent again."""


class Intake:
    """Takes webhooks until `stop`.

    Args:
        store: where they are committed.
        rules: where they go.
        metrics: counts the answers.
        accepted: called with the channels that have something new, after the commit.
        alive: called with the watchdogs that were seen, after the commit.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        metrics: Metrics,
        accepted: Callable[[Iterable[str]], None],
        alive: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._rules = rules
        self._metrics = metrics
        self._accepted = accepted
        self._alive = alive
        self._in_hand = 0
        self._turns = asyncio.Semaphore(TURNS)
        self._stopping = False

    def stop(self) -> None:
        """From now on every webhook is answered 503, also one whose body is still arriving."""
        self._stopping = True

    async def post(self, request: Request) -> Response:
        """The answers of the contract: 202, 200, 400, 413, 503; 500 for a defect of ours."""
        try:
            response = await self._answer(request)
        except ClientDisconnect:  # nobody is left to be answered, so no answer is counted
            log.warning("a sender went away before the end of its webhook; Alertmanager sends it again")
            return Response(status_code=503)
        except Exception:
            self._metrics.webhook(500)
            raise
        self._metrics.webhook(response.status_code)
        return response

    async def _answer(self, request: Request) -> Response:
        source = request.query_params.get("source", "")
        body = bytearray()
        try:
            await self._read(request, body)
            if len(source) > _SOURCE_LIMIT or source == OWN_SOURCE:
                reason = f"source: expected at most {_SOURCE_LIMIT} characters, and not {OWN_SOURCE}"
                return await self._put_aside(body, source, 400, reason)
            await self._turn()
            try:
                return await self._accept(bytes(body), source)
            finally:
                self._turns.release()
        except webhook.MalformedError as error:
            return await self._put_aside(body, source, 400, str(error))
        except _TooLargeError:
            return await self._put_aside(body, source, 413, f"the body is over {BODY_LIMIT} bytes")
        except (_NotNowError, StoreUnavailableError) as error:
            return _refuse(503, f"not accepted, send it again: {error}")
        finally:
            self._in_hand -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._in_hand += len(chunk)
                    if len(body) > BODY_LIMIT:
                        raise _TooLargeError
                    if self._in_hand > IN_HAND_LIMIT:
                        raise _NotNowError("too much is being received")
        except TimeoutError:
            raise _NotNowError(f"the body did not arrive within {BODY_SECONDS:g} s") from None
        if self._stopping:
            raise _NotNowError("the relay is stopping")

    async def _turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()  # at once
            return
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise _NotNowError(f"{TURNS} others come first") from None

    async def _accept(self, body: bytes, source: str) -> Response:
        if len(body) > _ON_LOOP:
            event = await asyncio.to_thread(webhook.read, body, source)
        else:
            event = webhook.read(body, source)
        news, seen = taken_out(event, self._rules.heartbeats)
        if seen:
            await watchdogs.seen(self._store, seen)
            self._alive(seen)
        if news is None:
            return JSONResponse({"event_id": None, "deliveries": 0, "duplicate": False}, status_code=202)
        return await self._commit(news, body)

    async def _commit(self, event: Event, body: bytes) -> Response:
        rules = self._rules
        routed = route(event, rules.routes, rules.default_channels)

        def decide(known: Known | None, now: float) -> Plan | None:
            return identity.plan(
                event,
                known,
                now=now,
                duplicate_window=rules.duplicate_window,
                routed=routed,
                configured=rules.channels,
            )

        large = len(body) > _ON_LOOP
        incoming = await asyncio.to_thread(_incoming, event, body) if large else _incoming(event, body)
        accepted = await accept(self._store, incoming, decide)
        for channel in accepted.superseded:
            self._metrics.ended(channel, State.SUPERSEDED)
        self._accepted(accepted.channels)
        answer = {
            "event_id": accepted.event_id,
            "deliveries": accepted.deliveries,
            "duplicate": accepted.duplicate,
        }
        return JSONResponse(answer, status_code=200 if accepted.duplicate else 202)

    async def _put_aside(self, body: bytearray, source: str, code: int, reason: str) -> Response:
        try:
            kept = bytes(body[: quarantine.CUT])
            await quarantine.put_aside(self._store, kept, source=source[:_SOURCE_LIMIT], code=code, reason=reason)
        except StoreUnavailableError as error:
            return _refuse(503, f"not accepted ({reason}), and the body cannot be kept: {error}")
        return _refuse(code, reason)


def _incoming(event: Event, body: bytes) -> Incoming:
    return Incoming(
        event=event,
        incident_id=identity.incident_id(event),
        fingerprint=identity.fingerprint(event),
        alertname=identity.alertname(event),
        body=body,
    )


def _refuse(code: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=code)
