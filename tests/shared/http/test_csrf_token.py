"""The token of a page: bound to a session or to a cookie, read from the beginning of a form, which stays whole."""

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope

from shared.config.server_settings import Role
from shared.http.access import Authorizer, ProtectedRoute, RouteRequirements, get_caller, is_still_authorized
from shared.http.authentication import (
    SESSION_SCOPE_KEY,
    AccessPolicy,
    Caller,
    Session,
    check_csrf_token,
    get_csrf_token,
    send_csrf_cookie,
)
from shared.http.json_api import RefusedError, read_form
from shared.http.server import create_application

ANNA = Session(Caller("anna", Role.RESPONDER), "a" * 43)
BEN = Session(Caller("ben", Role.RESPONDER), "b" * 43)


def request_with(session: Session | None = None, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "scheme": "http"}
    return Request({**scope, SESSION_SCOPE_KEY: session})


def receive_chunks(chunks: Iterable[bytes]) -> Receive:
    *first, last = chunks
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in first]
    messages.append({"type": "http.request", "body": last, "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def test_a_token_is_that_of_its_session_alone() -> None:
    token = get_csrf_token(request_with(ANNA))
    assert token == get_csrf_token(request_with(ANNA))
    assert "a" * 43 not in token
    for session, sent, expected in (
        (ANNA, token, True),
        (BEN, token, False),
        (None, token, False),
        (ANNA, "", False),
        (ANNA, token.upper(), False),
        (ANNA, "é", False),
    ):
        request = request_with(session, x_csrf_token=sent)
        assert (await check_csrf_token(request, receive_chunks([b""])))[0] is expected


async def test_without_a_session_it_is_that_of_a_cookie_which_the_response_sets() -> None:
    first, sent = request_with(), list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    token = get_csrf_token(first)
    assert token == get_csrf_token(first)  # of each form of the page
    await send_csrf_cookie(first, send)({"type": "http.response.start", "status": 200, "headers": []})
    ((_, cookie),) = sent[0]["headers"]
    value = cookie.decode().partition(";")[0]
    assert cookie.decode().endswith("; Path=/; HttpOnly; SameSite=Lax; Max-Age=604800")
    assert (await check_csrf_token(request_with(cookie=value, x_csrf_token=token), receive_chunks([b""])))[0]
    for other in ("keypulse_csrf=" + "x" * 43, "keypulse_csrf=short", "keypulse_csrf=", "other=1"):
        assert not (await check_csrf_token(request_with(cookie=other, x_csrf_token=token), receive_chunks([b""])))[0]


@pytest.mark.parametrize("size", [1, 7, 80, 10_000])
async def test_a_form_has_it_as_its_first_field_in_chunks_of_any_size_and_stays_whole(size: int) -> None:
    token = get_csrf_token(request_with(ANNA))
    for body, expected in (
        (f"csrf_token={token}&other=1&more={'x' * 500}", True),
        (f"csrf_token={token}", True),
        (f"other=1&csrf_token={token}", False),
        (f"csrf_token={'0' * 64}&csrf_token={token}", False),
        (f"csrf_token={token}x", False),
        ("", False),
    ):
        chunks = [body.encode()[start : start + size] for start in range(0, len(body), size)] or [b""]
        valid, receive = await check_csrf_token(request := request_with(ANNA), receive_chunks(chunks))
        assert valid is expected, body
        assert await Request(request.scope, receive).body() == body.encode()


@pytest.mark.looptime
async def test_a_form_that_does_not_arrive_is_not_waited_for_for_long() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    assert not (await check_csrf_token(request_with(ANNA), never))[0]
    with pytest.raises(RefusedError) as slow:
        await read_form(Request(request_with(ANNA).scope, never))
    assert slow.value.status == 408


class FakeSessions:
    """Everybody is anna, until she logs out."""

    uses_https = False
    public_path = ""

    def __init__(self) -> None:
        self.session: Session | None = ANNA

    def is_public_host(self, request: Request) -> bool:  # noqa: ARG002  # the port's
        return False

    async def find_session(self, request: Request) -> Session | None:  # noqa: ARG002  # likewise
        return self.session

    def build_refusal(self, request: Request, status: int, message: str) -> Response | None:  # noqa: ARG002  # likewise
        return None


async def test_a_request_that_lasts_notices_that_its_session_has_ended() -> None:
    sessions = FakeSessions()
    tokens: list[Any] = []

    async def stream(request: Request) -> Response:
        tokens.append((get_caller(request).name, await is_still_authorized(request)))
        sessions.session = None
        tokens.append(await is_still_authorized(request))
        return PlainTextResponse("over")

    authorizer = Authorizer(CollectorRegistry())
    authorizer.sessions = sessions
    access = AccessPolicy(accepts_sessions=True, requires_credentials=True)
    app = create_application(
        "relay",
        authorizer.metrics,
        [ProtectedRoute("/s", stream, RouteRequirements(Role.VIEWER))],
        authorizer=authorizer,
        access_policy=access,
    )
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://relay.example.org") as client:
        assert (await client.get("/s")).status_code == 200
        assert (await client.get("/s")).status_code == 401
    assert tokens == [("anna", True), False]
