"""`POST /alerts`: the body, then the commit, and only then the answer. Who may send is the guard's business.

Alertmanager asks again after a 5xx or a lost connection, and after nothing else: whatever may be our fault is a 503.
https://github.com/prometheus/alertmanager/blob/main/notify/util.go
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from services.relay import identity
from services.relay.identity import OWN_SOURCE
from services.relay.intake import quarantine, webhook
from services.relay.intake.heartbeat import Heartbeat
from services.relay.intake.routing import Rule
from services.relay.intake.take_apart import take_apart
from services.relay.metrics import Metrics
from services.relay.model import Status
from services.relay.outbox import watchdogs
from services.relay.outbox.accept import Incoming, Plan, accept
from services.relay.outbox.byte_limit import ByteLimit
from services.relay.outbox.known import Known
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError
from services.relay.parsing import parse_apart
from shared.arriving import SMALL, Arrival, CrowdedError, OverLimitError, Room, SlowError

SMALL_ONES: Final = 16 * 1024 * 1024
"""Bytes of all small bodies that arrive or wait for their commit. Larger ones share as much as one may have: so they
come one after the other, and never hold up what is small."""
TURNS: Final = 64
"""How many webhooks are taken apart and committed at a time, so that thousands at once fit into memory."""
TURN_SECONDS: Final = 8.0
"""How long one that was read waits for its turn; then Alertmanager may ask again."""
_SOURCE_LIMIT: Final = 200

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
    max_body: int
    """Bytes of a webhook, at most."""
    heartbeats: Sequence[Heartbeat] = ()
    """The alerts that are signs of life, and no news."""


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
        limit: of the outbox's bytes.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        metrics: Metrics,
        accepted: Callable[[Iterable[str]], None],
        alive: Callable[[Iterable[str]], None],
        limit: ByteLimit | None = None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._metrics = metrics
        self._accepted = accepted
        self._alive = alive
        self._room = Room(SMALL_ONES, rules.max_body)
        self._limit = limit or ByteLimit()
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
        arrival = self._arrival(request)
        body = arrival.body
        try:
            await self._read(arrival)
            return await self._in_turn(body, source)
        except webhook.MalformedError as error:
            return await self._put_aside(body, source, 400, str(error))
        except webhook.TooManyError as error:
            return await self._put_aside(body, source, 413, str(error))
        except OverLimitError:
            reason = f"the body is over {self._rules.max_body} bytes, see intake.max_body"
            return _closing(await self._put_aside(body, source, 413, reason))
        except (_NotNowError, StoreUnavailableError) as error:
            refused = _refuse(503, f"not accepted, send it again: {error}")
            return refused if arrival.whole else _closing(refused)
        finally:
            arrival.let_go()

    async def _in_turn(self, body: bytearray, source: str) -> Response:
        if len(source) > _SOURCE_LIMIT or source == OWN_SOURCE:
            reason = f"source: expected at most {_SOURCE_LIMIT} characters, and not {OWN_SOURCE}"
            raise webhook.MalformedError(reason)
        await self._turn()
        try:
            whole = bytes(body)
            del body[quarantine.CUT :]  # what quarantine would keep
            return await self._accept(whole, source)
        finally:
            self._turns.release()

    async def _read(self, arrival: Arrival) -> None:
        try:
            await arrival.read()
        except CrowdedError:
            arrival.let_go()
            await arrival.skip()
            raise _NotNowError("other webhooks come first") from None
        except SlowError as error:
            raise _NotNowError(str(error)) from None
        if self._stopping:
            raise _NotNowError("the relay is stopping")

    def _arrival(self, request: Request) -> Arrival:
        header = request.headers.get("content-length", "")
        declared = int(header) if header.isdecimal() else None
        too_large = declared is not None and declared > self._rules.max_body
        limit = quarantine.CUT if too_large else self._rules.max_body
        return Arrival(self._room, request.stream(), min(limit, self._rules.max_body), declared)

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
        task = partial(take_apart, body, source, self._rules.heartbeats, self._rules.routes)
        taken = await parse_apart(task) if len(body) > SMALL else task()
        if taken.seen:
            await watchdogs.seen(self._store, taken.seen)
            self._alive(taken.seen)
        if taken.incoming is None:
            return JSONResponse({"event_id": None, "deliveries": 0, "duplicate": False}, status_code=202)
        return await self._commit(taken.incoming, taken.rule.channels if taken.rule else self._rules.default_channels)

    async def _commit(self, incoming: Incoming, routed: Sequence[str]) -> Response:
        rules = self._rules

        def decide(known: Known | None, now: float) -> Plan | None:
            return identity.plan(
                incoming.event,
                known,
                content=incoming.fingerprint,
                now=now,
                duplicate_window=rules.duplicate_window,
                routed=routed,
                configured=rules.channels,
            )

        with self._limit.taking(len(incoming.body), resolved=incoming.event.status is Status.RESOLVED):
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


def _refuse(code: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=code)


def _closing(response: Response) -> Response:
    """The answer to a body of which no more is read; else uvicorn would read the rest, to drop it."""
    response.headers["Connection"] = "close"
    return response
