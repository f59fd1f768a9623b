import base64
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from shared.auth import Access, Token
from shared.guard import GuardedRoute, Requires, caller_of
from shared.secret_file import SecretFile
from shared.server import application, registry
from shared.settings import Role


async def _endpoint(request: Request) -> Response:
    return PlainTextResponse(f"inside as {caller_of(request).name}")


def _client(*secrets: SecretFile, browser: bool = False) -> httpx2.AsyncClient:
    route = GuardedRoute("/", _endpoint, Requires(Role.VIEWER, browser=browser))
    access = Access([Token(f"holder-{n}", Role.VIEWER, secret) for n, secret in enumerate(secrets)])
    app = application("sample", registry(), [route], access=access)
    base = "http://server" if secrets else "http://127.0.0.1:9000"
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=base)


@pytest.fixture
def secret(tmp_path: Path) -> SecretFile:
    (tmp_path / "token").write_text("new\nold\n")
    return SecretFile(tmp_path / "token")


def _basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    "header", ["Bearer new", "Bearer old", "bearer new", "Bearer  new ", _basic(b"anybody:new"), _basic(b":old")]
)
async def test_either_token_is_let_in(header: str, secret: SecretFile) -> None:
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
        "Bearer new old",
        "Bearer new\told",
        "new",
        "Digest new",
        "Basic new",
        "Basic ?",
        _basic(b"new"),
        _basic(b"new:"),
        _basic(b"\xff:\xff"),
        b"Bearer \xff",
    ],
    ids=repr,
)
async def test_anything_else_is_refused_with_401(header: str | bytes, secret: SecretFile) -> None:
    raw = header if isinstance(header, bytes) else header.encode()
    async with _client(secret) as client:
        answer = await client.get("/", headers=[(b"authorization", raw)])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": "a valid token is needed: Authorization: Bearer TOKEN"}


async def test_no_header_is_refused_and_a_browser_is_asked_for_a_password(secret: SecretFile) -> None:
    async with _client(secret, browser=True) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="keypulse"')


@pytest.mark.parametrize("header", ["", "Bearer new", "Bearer wrong"])
async def test_an_unreadable_token_file_answers_503_and_never_401(header: str, secret: SecretFile) -> None:
    secret.path.unlink()
    async with _client(secret) as client:
        answer = await client.get("/", headers={"authorization": header})
    assert (answer.status_code, answer.json()) == (503, {"error": "the token file of this server cannot be read"})


async def test_a_rotated_token_is_let_in_without_a_restart(secret: SecretFile) -> None:
    async with _client(secret) as client:
        secret.path.write_text("newest\n")
        statuses = [
            (await client.get("/", headers={"authorization": f"Bearer {token}"})).status_code
            for token in ("newest", "new", "old")
        ]
    assert statuses == [200, 401, 401]


async def test_without_a_secret_the_endpoint_is_open() -> None:
    async with _client() as client:
        assert (await client.get("/")).status_code == 200


async def test_a_token_that_is_not_ascii_is_compared_as_the_bytes_that_were_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("schlüssel\n", encoding="utf-8")
    async with _client(SecretFile(tmp_path / "token")) as client:
        answer = await client.get("/", headers=[(b"authorization", "Bearer schlüssel".encode())])
    assert answer.status_code == 200


async def test_each_token_has_its_holder_and_one_that_cannot_be_read_shuts_out_nobody_else(
    tmp_path: Path, secret: SecretFile
) -> None:
    async with _client(SecretFile(tmp_path / "missing"), secret) as client:
        answer = await client.get("/", headers={"authorization": "Bearer old"})
        assert (answer.status_code, answer.text) == (200, "inside as holder-1")
        assert (await client.get("/", headers={"authorization": "Bearer wrong"})).status_code == 503
