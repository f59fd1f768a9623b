"""`POST /alerts`: the body, then the commit, and only then the answer. The route checks who may send.

Alertmanager sends a webhook again after a 5xx or a lost connection, and after nothing else: whatever may be our fault
is a 503. https://github.com/prometheus/alertmanager/blob/main/notify/util.go

One deadline bounds the whole of it. It begins with the first byte, and so with the wait for admission, and covers the
body, every queue and the commit. Alertmanager gives up after 10 s, and by then it has its answer.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from services.relay.intake.acceptance import MAX_SOURCE, Acceptance, check_source
from services.relay.intake.webhook import MalformedWebhookError, ParsedWebhook, TooManyTextsError, parse_webhook
from services.relay.metrics import Metrics
from services.relay.outbox import quarantine
from services.relay.outbox.accept import encode_accepted
from services.relay.outbox.heartbeats import record_heartbeats
from services.relay.outbox.store import StoreUnavailableError
from shared.http.json_api import build_error_response
from shared.http.limits import (
    RECEIVED_AT,
    SMALL_BODY_BYTES,
    BodyBudgetExhaustedError,
    BodyBudgets,
    BodyReader,
    BodyTooLargeError,
    SlowBodyError,
)
from shared.process.concurrency import run_large

SMALL_BODIES_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of all small bodies that arrive or wait for their commit. Larger ones share as much as one may have: so they
come one after the other, and never delay small ones."""
MAX_CONCURRENT_WEBHOOKS: Final = 64
"""How many webhooks are parsed and committed at a time, so that thousands at once fit into memory."""
ANSWER_SECONDS: Final = 8.0
"""From the first byte until a webhook is answered 503, whatever it waits for: with a busy event loop 9 s at most."""
ADMISSION_SECONDS: Final = 7.0
"""How long one waits unread; then it is admitted, and has the rest of its time."""

log = structlog.get_logger(__name__)


class _RetryLaterError(Exception):
    """A webhook that cannot be accepted now, and may be sent again."""


@dataclass(slots=True)
class _Arrival:
    """A webhook that is not answered yet."""

    body: BodyReader
    waits_for: str = "its body"
    """For the sentence, should its time end."""


class Intake:
    """Takes webhooks until `stop`; calls `on_heartbeats` with the watchdogs that sent one, after the commit."""

    def __init__(
        self, acceptance: Acceptance, metrics: Metrics, on_heartbeats: Callable[[Iterable[str]], None]
    ) -> None:
        self.acceptance = acceptance
        self._store = acceptance.store
        self._settings = acceptance.settings
        self._max_body = acceptance.settings.intake.max_body
        self._metrics = metrics
        self._on_heartbeats = on_heartbeats
        self._body_budget = BodyBudgets(SMALL_BODIES_LIMIT, self._max_body)
        self._concurrency = asyncio.Semaphore(MAX_CONCURRENT_WEBHOOKS)
        self._stopping = False

    def stop(self) -> None:
        """From now on every webhook is answered 503, also one whose body is still arriving."""
        self._stopping = True

    async def handle_post(self, request: Request) -> Response:
        """The answers of the contract: 202, 200, 400, 413, 503; 500 for a defect of ours."""
        deadline = request.scope.get(RECEIVED_AT, asyncio.get_running_loop().time()) + ANSWER_SECONDS
        arrival = _Arrival(self._open_body(request, deadline))
        try:
            response = await self._respond_in_time(arrival, request.query_params.get("source", ""), deadline)
        except ClientDisconnect:  # nobody is left to be answered, so no answer is counted
            log.warning("client disconnected before the webhook was complete; Alertmanager retries")
            return Response(status_code=503)
        except Exception:
            self._metrics.count_webhook(500)
            raise
        finally:
            arrival.body.release()
        self._metrics.count_webhook(response.status_code)
        return response

    async def _respond_in_time(self, arrival: _Arrival, source: str, deadline: float) -> Response:
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                return await self._respond(arrival, source)
        except TimeoutError:
            if not timeout.expired():
                raise
            cause = f"after {ANSWER_SECONDS:g} s it still waited for {arrival.waits_for}"
        except (_RetryLaterError, StoreUnavailableError) as error:
            cause = str(error)
        refused = build_error_response(503, f"not accepted, send it again: {cause}")
        return refused if arrival.body.is_complete else _close_connection(refused)

    async def _respond(self, arrival: _Arrival, source: str) -> Response:
        body = arrival.body.body
        try:
            await self._read_body(arrival.body)
            check_source(source)
            arrival.waits_for = f"{MAX_CONCURRENT_WEBHOOKS} webhooks before it"
            async with self._concurrency:
                content = bytes(body)
                del body[quarantine.MAX_BODY_BYTES :]  # what quarantine would keep
                return await self._parse_and_commit(arrival, content, source)
        except (MalformedWebhookError, TooManyTextsError) as error:
            return await self._quarantine(body, source, error.status, str(error))
        except BodyTooLargeError:
            reason = f"the body is over {self._max_body} bytes, see intake.max_body"
            return _close_connection(await self._quarantine(body, source, 413, reason))

    async def _read_body(self, body: BodyReader) -> None:
        try:
            await body.read()
        except BodyBudgetExhaustedError:
            body.release()
            await body.discard_rest()
            raise _RetryLaterError("other webhooks come first") from None
        except SlowBodyError as error:
            raise _RetryLaterError(str(error)) from None
        if self._stopping:
            raise _RetryLaterError("the relay is stopping")

    def _open_body(self, request: Request, deadline: float) -> BodyReader:
        header = request.headers.get("content-length", "")
        declared = int(header) if header.isdecimal() else None
        too_large = declared is not None and declared > self._max_body
        limit = quarantine.MAX_BODY_BYTES if too_large else self._max_body
        return BodyReader(self._body_budget, request.stream(), min(limit, self._max_body), declared, deadline=deadline)

    async def _parse_and_commit(self, arrival: _Arrival, body: bytes, source: str) -> Response:
        received_at = self._store.clock()
        parsed = await self._parse(arrival, body, source)
        arrival.waits_for = "its commit"
        if parsed.heartbeats:
            await record_heartbeats(self._store, parsed.heartbeats)
            self._on_heartbeats(parsed.heartbeats)
        proven = await self.acceptance.accept_proofs(parsed.proofs, received_at)
        if parsed.incoming is None:
            return JSONResponse({"event_id": None, "deliveries": len(proven), "duplicate": False}, status_code=202)
        accepted = await self.acceptance.commit(parsed.incoming, parsed.route)
        return JSONResponse(encode_accepted(accepted), status_code=200 if accepted.is_duplicate else 202)

    async def _parse(self, arrival: _Arrival, body: bytes, source: str) -> ParsedWebhook:
        settings = self._settings
        work = partial(parse_webhook, body, source, settings.watchdogs, settings.routes, settings.proven_channels)
        if len(body) <= SMALL_BODY_BYTES:
            return work()
        arrival.waits_for = "its body to be parsed"
        parsing = asyncio.ensure_future(run_large(work))
        try:
            return await asyncio.shield(parsing)
        except asyncio.CancelledError:
            parsing.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else reads it
            arrival.body.release_after(parsing)
            raise
        finally:  # its error's traceback has this frame: as a cycle, both would keep the body until the next collection
            del parsing

    async def _quarantine(self, body: bytearray, source: str, code: int, reason: str) -> Response:
        try:
            stored_body = bytes(body[: quarantine.MAX_BODY_BYTES])
            await quarantine.quarantine_webhook(
                self._store, stored_body, source=source[:MAX_SOURCE], code=code, reason=reason
            )
        except StoreUnavailableError as error:
            return build_error_response(503, f"not accepted ({reason}), and the body cannot be kept: {error}")
        return build_error_response(code, reason)


def _close_connection(response: Response) -> Response:
    """The answer to a body of which no more is read; else uvicorn would read the rest, to drop it."""
    response.headers["Connection"] = "close"
    return response
