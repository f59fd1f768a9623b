"""Faults of the stand-in providers: added over `/api/faults`, applied to their responses. And the count of all changes.

hang              nothing is stored; no answer for `seconds` (or until healed), then 504, or a closed connection
status            this HTTP status or SMTP code
error             Slack's `ok: false` with this `error`; PagerDuty's 400 with it among `errors`
rate_limit        429 with `Retry-After: seconds`; SMTP 450
lost_answer       stored, but the connection breaks (after `seconds`) before the answer's first byte
slow_answer       stored, and answered as usual, but `seconds` later, or when healed
unshown           Slack: a post is answered as usual, and nobody ever sees it
refuse_recipient  SMTP: this `recipient` is answered 550, or `status`
"""

import asyncio
import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

ENDLESS_SECONDS = 3600.0  # seconds of a hang that names none; longer than any client waits


class ChangeFeed:
    """Counts the changes of the stand-ins, so that an open page asks for what is new alone."""

    def __init__(self) -> None:
        self.version = 0

    def publish(self) -> None:
        self.version += 1


class Provider(StrEnum):
    SLACK = "slack"
    PAGERDUTY = "pagerduty"
    SMTP = "smtp"


class FaultKind(StrEnum):
    HANG = "hang"
    STATUS = "status"
    ERROR = "error"
    RATE_LIMIT = "rate_limit"
    LOST_ANSWER = "lost_answer"
    SLOW_ANSWER = "slow_answer"
    UNSHOWN = "unshown"
    REFUSE_RECIPIENT = "refuse_recipient"


KINDS_AFTER_STORING = frozenset({FaultKind.LOST_ANSWER, FaultKind.SLOW_ANSWER})
"""The kinds of fault after which the request is stored."""


class ProviderFault(BaseModel):
    """One fault, for the next `count` requests that it fits, or until it is healed."""

    model_config = ConfigDict(extra="forbid")

    provider: Provider
    kind: FaultKind
    count: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, ge=0)
    status: int | None = Field(None, ge=400, le=599)
    error: str | None = None
    recipient: str | None = None
    target: str | None = None
    """A Slack channel, by its name with `#`; None is every request, also those that name no channel."""
    method: str | None = None
    """A method of Slack's Web API, such as chat.update, or a path of PagerDuty's Events API; None is all of them."""

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        smtp = self.provider is Provider.SMTP
        if self.kind is FaultKind.ERROR and (smtp or not self.error):
            raise ValueError("kind error: expected slack or pagerduty, and the error's name in `error`")
        if self.kind is FaultKind.REFUSE_RECIPIENT and not (smtp and self.recipient):
            raise ValueError("kind refuse_recipient: expected provider smtp, and the address in `recipient`")
        if self.kind is FaultKind.SLOW_ANSWER and self.seconds is None:
            raise ValueError("kind slow_answer: expected how late, in `seconds`")
        if self.target is not None and self.provider is not Provider.SLACK:
            raise ValueError("target: expected with provider slack only")
        if self.method is not None and smtp:
            raise ValueError("method: expected with provider slack or pagerduty only")
        if self.kind is FaultKind.UNSHOWN and self.provider is not Provider.SLACK:
            raise ValueError("kind unshown: expected with provider slack only")
        return self


class ProviderFaults:
    def __init__(self, changes: ChangeFeed) -> None:
        self._changes = changes
        self._active: dict[int, ProviderFault] = {}
        self._ids = itertools.count(1)
        self._healed = asyncio.Event()

    def add(self, fault: ProviderFault) -> int:
        """Add a fault; return its id."""
        number = next(self._ids)
        self._active[number] = fault.model_copy()
        self._changes.publish()
        return number

    def clear(self) -> None:
        """Remove every fault; hanging requests continue at once."""
        self._active.clear()
        self._healed.set()
        self._healed = asyncio.Event()
        self._changes.publish()

    def get_state(self) -> list[dict[str, object]]:
        """The faults in force, as JSON."""
        return [{"id": number, **fault.model_dump(exclude_none=True)} for number, fault in self._active.items()]

    def match(self, provider: Provider, is_match: Callable[[ProviderFault], bool]) -> ProviderFault | None:
        """Return the oldest matching fault, counted as applied, or None."""
        for number, fault in self._active.items():
            if fault.provider is provider and is_match(fault):
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        del self._active[number]
                    self._changes.publish()
                return fault
        return None

    async def wait_until_healed(self, seconds: float) -> None:
        """Waits `seconds`, or until everything is healed."""
        healed = self._healed
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await healed.wait()


async def respond_with_fault(
    faults: ProviderFaults,
    fault: ProviderFault | None,
    respond: Callable[[], Response],
    *,
    build_error: Callable[[str], Response],
    build_rate_limited: Callable[[dict[str, str]], Response],
) -> Response:
    """Return an HTTP provider's response under `fault`.

    Args:
        faults: their removal ends a wait.
        fault: to apply, or None.
        respond: stores the request and answers it.
        build_error: builds the provider's response for an error of this name.
        build_rate_limited: builds the provider's 429 with these headers.
    """
    if fault is None or fault.kind is FaultKind.UNSHOWN:
        return respond()
    if fault.kind is FaultKind.HANG:
        await faults.wait_until_healed(ENDLESS_SECONDS if fault.seconds is None else fault.seconds)
        return HTMLResponse("<h1>Gateway Timeout</h1>", status_code=504)
    if fault.kind is FaultKind.ERROR:
        return build_error(fault.error or "")
    if fault.kind is FaultKind.RATE_LIMIT:
        return build_rate_limited({"Retry-After": str(math.ceil(1 if fault.seconds is None else fault.seconds))})
    if fault.kind in KINDS_AFTER_STORING:
        given = respond()
        await faults.wait_until_healed(fault.seconds or 0)
        return given if fault.kind is FaultKind.SLOW_ANSWER else ClosedConnection()
    status = fault.status or 503
    return HTMLResponse(f"<h1>{status}</h1>", status_code=status)


class ClosedConnection(Response):
    """A response that closes the connection before its first byte; some clients retry then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start a response that cannot be written, and return."""
        del scope, receive
        # ASGI cannot close a connection. An answer that was begun and not written makes uvicorn close the connection;
        # without the illegal header the status line would go out.
        with suppress(Exception):  # of the HTTP parser that uvicorn found
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"\n")]})
