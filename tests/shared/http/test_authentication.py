import base64
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements, get_caller
from shared.http.authentication import AccessPolicy, Token
from shared.http.server import create_application, create_registry


async def _endpoint(request: Request) -> Response:
    return PlainTextResponse(f"inside as {get_caller(request).name}")


def _client(*secrets: TokenFile, browser: bool = False) -> httpx2.AsyncClient:
    route = ProtectedRoute("/", _endpoint, RouteRequirements(Role.VIEWER, challenges_browser=browser))
    access = AccessPolicy([Token(f"holder-{n}", Role.VIEWER, secret) for n, secret in enumerate(secrets)])
    app = create_application("sample", create_registry(), [route], access_policy=access)
    base = "http://server" if secrets else "http://127.0.0.1:9000"
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=base)


@pytest.fixture
def secret(tmp_path: Path) -> TokenFile:
    (tmp_path / "token").write_text("the-new-token-of-this\nthe-old-token-of-this\n")
    return TokenFile(tmp_path / "token")


def _basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    "header",
    [
        "Bearer the-new-token-of-this",
        "Bearer the-old-token-of-this",
        "bearer the-new-token-of-this",
        "Bearer  the-new-token-of-this ",
        _basic(b"anybody:the-new-token-of-this"),
        _basic(b":the-old-token-of-this"),
    ],
)
async def test_either_token_is_let_in(header: str, secret: TokenFile) -> None:
    async with _client(secret) as client:
        answer = await client.get("/", headers={"authorization": header})
    assert (answer.status_code, answer.text) == (200, "inside as holder-0")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer the-new-token-of-this the-old-token-of-this",
        "Bearer the-new-token-of-this\tthe-old-token-of-this",
        "the-new-token-of-this",
        "Digest the-new-token-of-this",
        "Basic the-new-token-of-this",
        "Basic ?",
        _basic(b"the-new-token-of-this"),
        _basic(b"the-new-token-of-this:"),
        _basic(b"\xff:\xff"),
        b"Bearer \xff",
    ],
    ids=repr,
)
async def test_anything_else_is_refused_with_401(header: str | bytes, secret: TokenFile) -> None:
    raw = header if isinstance(header, bytes) else header.encode()
    async with _client(secret) as client:
        answer = await client.get("/", headers=[(b"authorization", raw)])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {
        "error": "this needs a token of auth.admin_token_file or auth.tokens: Authorization: Bearer TOKEN"
    }


async def test_no_header_is_refused_and_a_browser_is_asked_for_a_password(secret: TokenFile) -> None:
    async with _client(secret, browser=True) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="keypulse"')


@pytest.mark.parametrize("header", ["", "Bearer the-new-token-of-this", "Bearer wrong"])
async def test_an_unreadable_token_file_answers_503_and_never_401(header: str, secret: TokenFile) -> None:
    secret.path.unlink()
    async with _client(secret) as client:
        answer = await client.get("/", headers={"authorization": header})
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "a token file or the sessions of this server cannot be read now; see its log"},
    )


async def test_a_rotated_token_is_let_in_without_a_restart(secret: TokenFile) -> None:
    async with _client(secret) as client:
        secret.path.write_text("the-newest-token-of-this\n")
        statuses = [
            (await client.get("/", headers={"authorization": f"Bearer the-{token}-token-of-this"})).status_code
            for token in ("newest", "new", "old")
        ]
    assert statuses == [200, 401, 401]


async def test_without_a_secret_the_endpoint_is_open() -> None:
    async with _client() as client:
        assert (await client.get("/")).status_code == 200


async def test_a_token_that_is_not_ascii_is_compared_as_the_bytes_that_were_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("schlüssel-mit-umlaut\n", encoding="utf-8")
    async with _client(TokenFile(tmp_path / "token")) as client:
        answer = await client.get("/", headers=[(b"authorization", "Bearer schlüssel-mit-umlaut".encode())])
    assert answer.status_code == 200


async def test_each_token_has_its_holder_and_one_that_cannot_be_read_shuts_out_nobody_else(
    tmp_path: Path, secret: TokenFile
) -> None:
    async with _client(TokenFile(tmp_path / "missing"), secret) as client:
        answer = await client.get("/", headers={"authorization": "Bearer the-old-token-of-this"})
        assert (answer.status_code, answer.text) == (200, "inside as holder-1")
        assert (await client.get("/", headers={"authorization": "Bearer wrong"})).status_code == 503
