"""The driver `admin_api` beyond the contract: towards a server that answers whatever it likes."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from services.rotator.drivers.admin_api import AdminApiDriverSettings
from services.rotator.drivers.registry import open_driver
from shared.keyring.administration import Administration, AdministrationError, RefusedError, UnreachableError
from shared.kms.gcp.settings import GcpKeySettings
from tests.key_versions import KEY
from tests.rotator.drivers.conftest import TOKEN
from tests.shared.certificates import LOCALHOST, Authority
from tests.tinyproxy import tinyproxy

KMS = GcpKeySettings(key=KEY)
CENSUS: dict[str, object] = {"versions": [], "active": None, "active_since": None}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture
def open_keyring(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Administration]]:
    """`async with open_keyring(handler) as keyring`: a driver, and a real HTTP server that answers it by `handler`."""

    @asynccontextmanager
    async def open_keyring(
        handler: Handler,
        *,
        timeout: float = 20.0,
        caller: str = "a test",
        tls: ssl.SSLContext | None = None,
        **network: Any,
    ) -> AsyncIterator[Administration]:
        (tmp_path / "token").write_text(f"{TOKEN}\nthe-old-token\n")
        runner = web.ServerRunner(web.Server(handler, access_log=None, handler_cancellation=True), shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/base/"
        values = {"kind": "admin_api", "url": url, "token_file": tmp_path / "token", "timeout": f"{timeout}s"}
        settings = AdminApiDriverSettings.model_validate(values | network)
        try:
            async with open_driver(settings, KMS, caller=caller) as keyring:
                yield keyring
        finally:
            await runner.cleanup()

    return open_keyring


Asking = Callable[..., AbstractAsyncContextManager[Administration]]


def always(status: int, body: str | bytes = b"", **headers: str) -> Handler:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, body=body.encode() if isinstance(body, str) else body, headers=headers)

    return handler


async def test_the_first_token_is_sent_and_the_caller_is_named(open_keyring: Asking, tmp_path: Path) -> None:
    received = []

    async def handler(request: web.BaseRequest) -> web.Response:
        received.append((request.path, request.headers["Authorization"], request.headers["X-Keypulse-Caller"]))
        return web.json_response(CENSUS)

    async with open_keyring(handler, caller="me\r\nX-Evil: ünd") as keyring:
        await keyring.count_key_usage()
        (tmp_path / "token").write_text("a-new-token")
        await keyring.count_key_usage()
    assert received == [
        ("/base/admin/crypto/census", f"Bearer {TOKEN}", "me??X-Evil: ?nd"),
        ("/base/admin/crypto/census", "Bearer a-new-token", "me??X-Evil: ?nd"),
    ]


async def test_a_service_that_does_not_say_whether_its_journal_can_be_read_may_need_any_version(
    open_keyring: Asking,
) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.json_response(CENSUS)

    async with open_keyring(handler) as keyring:
        found = await keyring.count_key_usage()
    assert (
        found.unknown_usage
        == "backups in a journal whose unreadable entries this version of the service does not count"
    )
    assert found.model_copy(update={"unreadable_entries": ()}).unknown_usage is None


@pytest.mark.parametrize(
    ("handler", "kind", "sentence"),
    [
        (
            always(401, '{"error": "a valid token is needed"}'),
            RefusedError,
            r"the token is refused \(a valid token is needed\); expected in token_file",
        ),
        (always(404), RefusedError, "no admin API is there"),
        (
            always(302, Location="http://elsewhere/"),
            RefusedError,
            r"a redirect \(HTTP 302\), which would take the token",
        ),
        (always(409, '{"error": "held by\\nanother"}'), RefusedError, "held by another$"),
        (always(424, '{"error": "KMS: denied"}'), AdministrationError, "KMS: denied$"),
        (always(424, '{"error": "KMS: denied", "hint": "allow it"}'), AdministrationError, "KMS: denied; allow it$"),
        (always(500, "<html>"), UnreachableError, "answered HTTP 500; try again"),
        (always(503, '{"error": "the disk is full"}'), UnreachableError, "the disk is full; try again"),
        (always(503, '{"error": "a; b", "hint": "free it"}'), UnreachableError, "a; b; free it$"),
        (always(503, '{"error": ' + "[" * 100_000), UnreachableError, "answered HTTP 503"),
        (always(200, "<html>"), UnreachableError, "the answer to census is not one of an admin API"),
        (always(200, "[" * 100_000), UnreachableError, "is not one of an admin API"),
        (always(200, b" " * (17 * 1024 * 1024)), UnreachableError, "the answer is over 16 MiB"),
        (always(200, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), UnreachableError, "is not one of an admin API"),
    ],
)
async def test_each_answer_that_is_none_is_one_sentence_with_the_next_step(
    open_keyring: Asking, handler: Handler, kind: type[AdministrationError], sentence: str
) -> None:
    async with open_keyring(handler) as keyring:
        with pytest.raises(kind, match=sentence) as raised:
            await keyring.count_key_usage()
    assert type(raised.value) is kind
    assert len(str(raised.value)) < 800


async def test_a_server_without_an_admin_api_is_not_mistaken_for_one_without_a_rotation(open_keyring: Asking) -> None:
    async with open_keyring(always(404, "Not Found")) as keyring:
        with pytest.raises(RefusedError, match="no admin API is there"):
            await keyring.get_progress()
    async with open_keyring(always(404, '{"error": "no rotation was ever made"}')) as keyring:
        assert await keyring.get_progress() is None


async def test_a_server_that_repeats_the_token_does_not_get_it_into_any_text(open_keyring: Asking) -> None:
    for status in (200, 409, 500):
        async with open_keyring(always(status, json.dumps({"error": f"you sent {TOKEN}"}))) as keyring:
            with pytest.raises(AdministrationError) as raised:
                await keyring.count_key_usage()
        assert TOKEN not in str(raised.value)


async def test_a_server_that_does_not_answer_is_waited_for_within_a_bound(open_keyring: Asking) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" ")
            await asyncio.sleep(0.1)

    async with open_keyring(handler, timeout=1.0) as keyring:
        with pytest.raises(UnreachableError, match="no answer within 1 s; it may have been done: check with `status`"):
            await keyring.count_key_usage()


async def test_where_nobody_listens_the_error_asks_whether_the_service_is_running(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    settings = AdminApiDriverSettings(kind="admin_api", url="http://127.0.0.1:1", token_file=tmp_path / "token")
    async with open_driver(settings, KMS) as keyring:
        with pytest.raises(UnreachableError, match=r"no answer: Connection refused; is the service running there"):
            await keyring.count_key_usage()


@pytest.mark.parametrize(("content", "sentence"), [(None, "No such file"), ("", "is empty"), ("\0x", "no HTTP header")])
async def test_a_token_that_cannot_be_sent_is_refused_before_anything_is(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    settings = AdminApiDriverSettings(kind="admin_api", url="http://127.0.0.1:1", token_file=tmp_path / "token")
    with pytest.raises(RefusedError, match=f"token_file .*{sentence}"):
        async with open_driver(settings, KMS) as keyring:
            await keyring.count_key_usage()


async def test_only_a_certificate_that_somebody_vouches_for_gets_the_token(
    open_keyring: Asking, tmp_path: Path
) -> None:
    authority, received = Authority(tmp_path), []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.sign("server", *LOCALHOST))

    async def handler(request: web.BaseRequest) -> web.Response:
        received.append(request.headers["Authorization"])
        return web.json_response(CENSUS)

    async with open_keyring(handler, tls=tls) as keyring:
        with pytest.raises(RefusedError, match=r"no secure connection .*ca_file"):
            await keyring.count_key_usage()
    assert received == []
    async with open_keyring(handler, tls=tls, ca_file=authority.ca) as keyring:
        await keyring.count_key_usage()
    assert received == [f"Bearer {TOKEN}"]


async def test_a_proxy_leads_to_the_service_or_says_why_it_does_not(open_keyring: Asking, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.sign("server", *LOCALHOST))
    with tinyproxy(tmp_path) as proxy:
        async with open_keyring(
            always(200, json.dumps(CENSUS)), tls=tls, ca_file=authority.ca, proxy=proxy.url
        ) as keyring:
            await keyring.count_key_usage()
        assert len(proxy.requests) == 1
    async with open_keyring(always(200), tls=tls, ca_file=authority.ca, proxy=proxy.url) as keyring:
        with pytest.raises(UnreachableError, match=rf"the proxy {proxy.address} \(proxy\) cannot be reached"):
            await keyring.count_key_usage()
    with tinyproxy(tmp_path, login=True) as closed:
        async with open_keyring(always(200), tls=tls, ca_file=authority.ca, proxy=closed.url) as keyring:
            with pytest.raises(RefusedError, match=r"wants another user and password \(HTTP 407\)"):
                await keyring.count_key_usage()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://backend.example.org", "expected https://, because http:// would send the secret in plaintext"),
        ("https://me:secret@backend.example.org", "without a user, a password or a query"),
    ],
)
def test_a_url_that_would_give_the_token_away_is_refused(url: str, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        TypeAdapter(AdminApiDriverSettings).validate_python({"kind": "admin_api", "url": url, "token_file": "t"})
