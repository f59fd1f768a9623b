"""The board's pages without a browser: their headers, and what a wrong question is answered."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx2
import pytest

from services.exporter.history import History
from services.exporter.model import Call, Failure, Operation, ProbeResult, TargetKey
from services.exporter.web.pages import BoardPages
from shared.config.secret_file import TokenFile
from shared.config.server_settings import Role
from shared.http.authentication import AccessPolicy, Token
from shared.http.server import create_application, create_registry
from shared.kms.reason import Reason

PATHS: Final = ("/", "/history?target=ledger-kek", "/api/board", "/board/board.js")
LOOPBACK: Final = "http://127.0.0.1:9911"
NOW: Final = 1_768_469_400.0


@asynccontextmanager
async def board_client(admin: Path | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a whole exporter's server that knows one key, `ledger-kek`, which fails."""
    history = History()
    history.configure({("ledger", "ledger-kek"): TargetKey()}, [])
    failure = Failure(Reason.PERMISSION_DENIED, "no role")
    history.add_probe(ProbeResult("ledger", "ledger-kek", NOW - 9, (Call(Operation.ENCRYPT, 0.01, failure),), None))
    access = AccessPolicy([Token("admin", Role.ADMIN, TokenFile(admin))] if admin else [])
    pages = BoardPages(history, result_max_age=180, clock=lambda: NOW)
    app = create_application("keypulse exporter", create_registry(), pages.build_routes(), access_policy=access)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=LOOPBACK) as client:
        yield client


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("a-secret-of-16-and-more\n")
    return file


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
    assert ('<a href="./">' in answer.text) == (path.startswith("/history"))


async def test_the_pages_hold_no_script_and_no_style_of_their_own() -> None:
    """What the Content-Security-Policy would refuse is not even there."""
    async with board_client() as client:
        for path in PATHS[:2]:
            html = (await client.get(path)).text
            assert re.findall(r"<script(?! type=\"module\" src=\"board/board.js\"></script>)", html) == []
            assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []
            addresses = re.findall(r"(?:src|href|action)=\"([^\"]*)", html)
            assert [each for each in addresses if not re.match(r"\./|board/|history|metrics|#", each)] == []
