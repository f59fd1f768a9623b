"""The board's pages without a browser: who may see them, their headers, and what a wrong question is answered."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http.access import USER_SCOPE_KEY, AccessPolicy, Token
from shared.http.server import create_application, create_registry
from shared.kms.reason import Reason

PATHS: Final = ("/", "/history?target=ledger-kek", "/api/board", "/board/board.js")
LOOPBACK: Final = "http://127.0.0.1:9911"
NOW: Final = 1_768_469_400.0


@asynccontextmanager
async def board_client(
    admin: Path | None = None, *, base: str = LOOPBACK, user: str | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a whole exporter's server that knows one key, `ledger-kek`, which fails."""
    history = History()
    history.configure({("ledger", "ledger-kek"): TargetKey()}, [])
    failure = Failure(Reason.PERMISSION_DENIED, "no role")
    history.add_probe(ProbeResult("ledger", "ledger-kek", NOW - 9, (Call(Operation.ENCRYPT, 0.01, failure),), None))
    tokens = [Token("admin", Role.ADMIN, TokenFile(admin))] if admin else []
    access = AccessPolicy(tokens, {user: Role.VIEWER} if user else {})
    pages = BoardPages(history, result_max_age=180, clock=lambda: NOW)
    app: ASGIApp = create_application(
        "keypulse exporter", create_registry(), pages.build_routes(), access_policy=access
    )

    async def call_with_user(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, USER_SCOPE_KEY: user}, receive, send)

    transport = httpx2.ASGITransport(app=call_with_user if user else app)
    async with httpx2.AsyncClient(transport=transport, base_url=base) as client:
        yield client


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("a-secret-of-16-and-more\n")
    return file


@pytest.mark.parametrize("path", PATHS)
async def test_a_token_that_is_set_is_required_on_every_page(path: str, token: Path) -> None:
    async with board_client(token) as client:
        answer = await client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")  # a browser asks for it
        assert "ledger-kek" not in answer.text
        assert (await client.get(path, auth=("anybody", "wrong"))).status_code == 401
        assert (await client.get(path, auth=("anybody", "a-secret-of-16-and-more"))).status_code == 200
        assert (await client.get(path, headers={"authorization": "Bearer a-secret-of-16-and-more"})).status_code == 200


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_another_site_reads_nothing(path: str, token: Path) -> None:
    for admin in (None, token):
        async with board_client(admin) as client:
            for headers in (
                {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
                {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
                {"origin": "https://evil.example.org"},
                {"origin": "null"},
            ):
                answer = await client.get(path, headers=headers, auth=("anybody", "a-secret-of-16-and-more"))
                assert answer.status_code == 403
                assert "ledger-kek" not in answer.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_name_that_somebody_pointed_to_this_server_reads_nothing_without_credentials(
    path: str, token: Path
) -> None:
    elsewhere = "http://rebound.example.org:9911"
    async with board_client(base=elsewhere) as client:
        answer = await client.get(path)
        assert answer.status_code == 403
        assert "set auth.admin_token_file" in answer.text
        assert "ledger-kek" not in answer.text
    async with board_client(token, base=elsewhere) as client:
        assert (await client.get(path, auth=("anybody", "a-secret-of-16-and-more"))).status_code == 200
    async with board_client(base="http://localhost:9911") as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", [*PATHS, "/history", "/board/nothing"])
async def test_every_answer_has_its_security_headers(path: str, token: Path) -> None:
    async with board_client(token) as client:
        policies = []
        for answer in (await client.get(path), await client.get(path, auth=("", "a-secret-of-16-and-more"))):
            policy = answer.headers["content-security-policy"]
            policies.append(policy.partition("; base-uri")[0])
            assert policy.startswith("default-src 'none';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            revalidated = answer.status_code == 200 and path.startswith("/board/")
            assert answer.headers["cache-control"] == ("no-cache" if revalidated else "no-store")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["referrer-policy"] == "no-referrer"
    assert policies == [
        "default-src 'none'; frame-ancestors 'none'",  # a refusal has no script
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'",
    ]


async def test_metrics_and_the_two_probes_stay_open(token: Path) -> None:
    async with board_client(token, base="http://exporter.example.org") as client:
        for path in ("/metrics", "/-/healthy", "/-/ready"):
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        ("/history?target=gone", 404, "There is no such target"),
        ("/history?target=%00%F0%9F", 404, "There is no such target"),
        ("/board/nothing.js", 404, "there is no such file"),
        ("/board/board.html.j2", 404, "there is no such file"),
        ("/board/..%2Fpages.py", 404, ""),
    ],
)
async def test_a_wrong_question_is_answered_in_a_sentence(path: str, code: int, sentence: str) -> None:
    async with board_client() as client:
        answer = await client.get(path)
    assert answer.status_code == code
    assert sentence in answer.text
    assert ('<a href="/">' in answer.text) == (path.startswith("/history"))


async def test_the_pages_hold_no_script_and_no_style_of_their_own() -> None:
    """What the Content-Security-Policy would refuse is not even there."""
    async with board_client() as client:
        for path in PATHS[:2]:
            html = (await client.get(path)).text
            assert re.findall(r"<script(?! type=\"module\" src=\"/board/board.js\"></script>)", html) == []
            assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []
            assert re.findall(r"(?:src|href)=\"(?!/|#)[^\"]*", html) == []
