"""Logins at a real provider of OpenID Connect."""

import asyncio
import base64
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from joserfc.jwk import KeySet, RSAKey
from pydantic import ValidationError

from services.relay.config import RelaySettings
from services.relay.login.oidc import OidcClient
from services.relay.login.sessions import ATTEMPT_SECONDS, Login, LoginAttempt, OidcError
from shared.config.server_settings import Role
from tests.relay.console.test_api import Clock
from tests.relay.login.provider import Provider, drop_from_id_tokens, open_provider
from tests.relay.login.served_login import BASE, build_settings, open_relay, read_audit, token
from tests.relay.served_relay import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the provider uses authlib's older part
SECRET = "the-secret:of/the client"


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with open_provider() as running:
        yield running


@pytest.fixture
def provider(shared_provider: Provider) -> Iterator[Provider]:
    shared_provider.code_requests.clear()
    shared_provider.authorizations.clear()
    yield shared_provider
    shared_provider.discovery.clear()


def configure(folder: Path, provider: Provider, **keys: Any) -> RelaySettings:
    (folder / "client").write_text(SECRET)
    oidc = {
        "issuer": provider.issuer,
        "client_id": "keypulse",
        "client_secret_file": str(folder / "client"),
        "roles": {"sre": "responder", "platform": "admin", "everybody": "viewer"},
        **keys,
    }
    return build_settings(folder, oidc=oidc, public_url=BASE)


def test_the_public_url_is_required(provider: Provider, tmp_path: Path) -> None:
    oidc = configure(tmp_path, provider).auth.oidc
    with pytest.raises(ValidationError, match="public_url: expected beside `oidc`"):
        build_settings(tmp_path, oidc=oidc)


async def begin(browser: httpx2.AsyncClient, following: str = "/") -> str:
    """Where the provider is."""
    answer = await browser.get("/login/oidc", params={"next": following})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def test_a_person_logs_in_at_the_provider_and_the_highest_role_of_their_groups_counts(
    provider: Provider, tmp_path: Path
) -> None:
    await provider.set_person(
        "anna-17", email="anna@example.org", email_verified=True, groups=["everybody", "sre", "x"]
    )
    settings = configure(tmp_path, provider)
    async with open_relay(settings, tmp_path) as relay, relay.open_browser() as browser:
        page = await browser.get("/login?next=/audit")
        assert 'href="/login/oidc?next=/audit"' in page.text
        url = await begin(browser, "/audit")
        sent = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert url.startswith(f"{provider.issuer}/oauth2/authorize?")
        assert sent["redirect_uri"] == f"{BASE}/login/oidc/callback"
        assert sent["scope"] == "openid profile email"
        assert len({sent["state"], sent["nonce"], sent["code_challenge"]}) == 3

        done = await browser.get(await provider.log_in(url, "anna-17"))
        assert (done.status_code, done.headers["location"]) == (303, "/audit"), done.text
        (code_request,) = provider.code_requests
        assert code_request["code_verifier"] not in url
        # Both parts are form-encoded before Base64.
        assert base64.b64decode(provider.authorizations[0].split()[1]) == b"keypulse:the-secret%3Aof%2Fthe+client"

        audit = await browser.get("/audit")
        assert "anna@example.org" in audit.text
        assert "responder" in audit.text
        assert (await browser.get("/login/oidc/callback")).status_code == 401
        assert await read_audit(relay) == [("anna@example.org", "192.0.2.1", "login", "oidc")]

        async def apply(**changes: Any) -> None:
            oidc = settings.auth.oidc.model_copy(update=changes) if settings.auth.oidc and changes else None
            await relay.app.state.apply(
                settings.model_copy(update={"auth": settings.auth.model_copy(update={"oidc": oidc})})
            )

        await apply(roles={"sre": Role.VIEWER})
        assert "viewer" in (await browser.get("/audit")).text
        for changes in ({"roles": {"other": Role.ADMIN}}, {"client_id": "another"}, {}):
            await apply(**changes)
            assert (await browser.get("/audit")).status_code == 303


async def test_several_tabs_log_in_at_once_and_no_callback_works_twice_elsewhere_or_with_another_state(
    provider: Provider, tmp_path: Path
) -> None:
    await provider.set_person("ben", groups="everybody")  # a single text, as some providers send it
    async with (
        open_relay(configure(tmp_path, provider), tmp_path) as relay,
        relay.open_browser() as browser,
        relay.open_browser() as other,
    ):
        urls = [await begin(browser, path) for path in ("/audit", "/")]
        backs = [await provider.log_in(url, "ben") for url in urls]
        stolen = await other.get(backs[0])
        assert (stolen.status_code, "in another browser" in stolen.text) == (401, True)
        cookies = dict(browser.cookies)
        assert len([name for name in cookies if name.startswith("keypulse_login_")]) == 2
        for back, path in zip(backs, ("/audit", "/"), strict=True):
            assert (await browser.get(back)).headers["location"] == path
        assert not [name for name in browser.cookies if name.startswith("keypulse_login_")]
        assert (await browser.get(backs[0])).status_code == 401
        # With a copy of the cookie, too: the provider takes a code once.
        async with relay.open_browser() as second:
            second.cookies.update(cookies)
            replayed = await second.get(backs[0])
            assert (replayed.status_code, "keypulse_session" in replayed.headers.get("set-cookie", "")) == (401, False)

        # An attacker's code in the victim's browser: state, and the verifier, are those of another attempt.
        mine = await provider.log_in(await begin(other), "mallory")
        started = await begin(browser)
        code = parse_qs(urlsplit(mine).query)["code"][0]
        state = parse_qs(urlsplit(started).query)["state"][0]
        injected = await browser.get(f"/login/oidc/callback?{urlencode({'code': code, 'state': state})}")
        assert (injected.status_code, "invalid_grant" in injected.text) == (401, True)
        for query in ("", "?state=x&code=y", f"?state={'0' * 64}&code=y", "?code=y", f"?state={'é' * 64}"):
            assert (await browser.get(f"/login/oidc/callback{query}")).status_code == 401
        assert relay.count_refused("/login/oidc/callback", "wrong") >= 7
        for _ in range(20):  # a browser keeps few of them
            await begin(browser)
        assert len([name for name in browser.cookies if name.startswith("keypulse_login_")]) <= 5


async def test_the_provider_is_asked_about_no_attempt_that_the_relay_did_not_begin_within_ten_minutes(
    provider: Provider, tmp_path: Path
) -> None:
    clock = Clock()
    settings = configure(tmp_path, provider)
    async with open_relay(settings, tmp_path, clock=clock) as relay, relay.open_browser() as browser:
        forged = f"{'x' * 43}.{int(clock.now)}"
        for value in (forged, f"{forged}.{'0' * 64}", f"{forged}.é", "x", f"..{'0' * 64}", ""):
            state = LoginAttempt(value).state
            headers = {b"cookie": f"keypulse_login_{state[:16]}={value}.Lw".encode("latin-1")}
            answer = await browser.get(f"/login/oidc/callback?state={state}&code=x", headers=headers)
            assert (answer.status_code, "in another browser" in answer.text) == (401, True), value
        back = await provider.log_in(await begin(browser), "frida")
        clock.now += ATTEMPT_SECONDS + 1
        answer = await browser.get(back)
        assert (answer.status_code, "too long ago" in answer.text) == (401, True)
        assert provider.code_requests == []
        back = await provider.log_in(await begin(browser), "frida")
        clock.now += ATTEMPT_SECONDS - 1
        await browser.get(back)
        assert len(provider.code_requests) == 1


async def test_an_address_with_many_logins_keeps_no_other_address_waiting(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.login.oidc._REPLY_TIMEOUT", 60.0)  # the provider waits until all have come
    await provider.set_person("frida", groups="sre")
    settings = configure(tmp_path, provider)
    async with (
        asyncio.timeout(120),
        open_relay(settings, tmp_path) as relay,
        relay.open_browser() as frida,
        AsyncExitStack() as stack,
    ):
        back = await provider.log_in(await begin(frida), "frida")
        flooding = []
        provider.may_answer.clear()
        stack.callback(provider.may_answer.set)
        for _ in range(40):  # 4 are completed at once, and 32 may wait
            browser = await stack.enter_async_context(relay.open_browser(peer="192.0.2.66"))
            state = parse_qs(urlsplit(await begin(browser)).query)["state"][0]
            flooding.append(asyncio.create_task(browser.get(f"/login/oidc/callback?state={state}&code=x")))
        await until(lambda: len(provider.code_requests) == 4)
        done = asyncio.create_task(frida.get(back))
        await asyncio.sleep(0)
        await until(lambda: any(each.done() for each in flooding))  # more of them than may wait are refused
        provider.may_answer.set()
        assert (await done).status_code == 303
        code = parse_qs(urlsplit(back).query)["code"]
        assert [each["code"] for each in provider.code_requests[4:12]].count(code[0]) == 1  # hers is one of the next
        assert {(await each).status_code for each in flooding} == {401, 503}


async def test_what_the_provider_denies_or_nobody_gave_a_role_is_refused_with_a_sentence(
    provider: Provider, tmp_path: Path
) -> None:
    await provider.set_person("carl", preferred_username="carl", groups=["accounting"])
    await provider.set_person("named-like-a-token", preferred_username="emil", groups=["platform"])
    await provider.set_person("upper", preferred_username="Admin", groups=["platform"])
    await provider.set_person("unverified", email="anna", email_verified=False, groups=["sre"])
    async with open_relay(configure(tmp_path, provider), tmp_path) as relay, relay.open_browser() as browser:
        denied = await browser.get(await provider.log_in(await begin(browser), "carl", action="deny"))
        assert denied.status_code == 401
        for subject, reported in (
            ("carl", "carl has no role here"),
            ("named-like-a-token", "another caller"),
            ("upper", "another caller"),
        ):
            answer = await browser.get(await provider.log_in(await begin(browser), subject))
            assert (answer.status_code, reported in answer.text) == (403, True)
        assert relay.count_refused("/login/oidc/callback", "role") == 3
        back = await provider.log_in(await begin(browser), "unverified")
        mixed = await browser.get(f"{back}&iss=https://evil.example.org")
        assert (mixed.status_code, "Another provider" in mixed.text) == (401, True)
        back = await provider.log_in(await begin(browser), "unverified")
        assert (await browser.get(f"{back}&iss={provider.issuer}")).status_code == 303
        assert (await read_audit(relay))[0][0] == "unverified"  # not the address of somebody else


async def test_a_provider_that_does_not_answer_as_it_should_leaves_the_other_logins(
    provider: Provider, tmp_path: Path
) -> None:
    async with open_relay(configure(tmp_path, provider), tmp_path) as relay, relay.open_browser() as browser:
        for change, reported in (
            ({"issuer": "https://evil.example.org"}, "another issuer"),
            ({"token_endpoint": "http://evil.example.org/token"}, "unusable URL"),
            ({"jwks_uri": None}, "not that of OpenID Connect"),
            ({"more": "x" * 300_000}, "over 262144 bytes"),
        ):
            provider.discovery.clear()
            provider.discovery.update(change)
            answer = await browser.get("/login/oidc")
            assert (answer.status_code, reported in answer.text) == (503, True), answer.text
            assert 'name="secret"' in answer.text
        provider.discovery_count = 0
        answers = await asyncio.gather(*(browser.get("/login/oidc") for _ in range(20)))
        assert {each.status_code for each in answers} == {503}
        assert provider.discovery_count == 1  # one read for all who wait for it
        provider.discovery.clear()
        back = await provider.log_in(await begin(browser), "dan")
        (tmp_path / "client").unlink()
        answer = await browser.get(back)
        assert (answer.status_code, "client_secret_file" in answer.text, SECRET in answer.text) == (503, True, False)
        assert str(tmp_path) not in answer.text
        headers = {"authorization": f"Bearer {token('dora')}"}
        assert (await browser.get("/audit", headers=headers)).status_code == 200
    unreachable = configure(tmp_path, Provider("http://127.0.0.1:1", None))
    async with open_relay(unreachable, tmp_path) as relay, relay.open_browser() as browser:
        answer = await browser.get("/login/oidc")
        assert (answer.status_code, "no connection" in answer.text) == (503, True)


async def test_new_keys_of_the_provider_are_read_and_groups_may_come_with_the_userinfo(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.set_person("eva", groups=["sre"], sub="eva")
    oidc = configure(tmp_path, provider).auth.oidc
    assert oidc is not None
    now = 1000.0
    client = OidcClient(oidc, monotonic=lambda: now)

    async def log_in() -> Login:
        attempt = client.create_attempt()
        url = await client.build_authorization_url(attempt, f"{BASE}/login/oidc/callback")
        code = parse_qs(urlsplit(await provider.log_in(url, "eva")).query)["code"][0]
        return await client.complete(attempt, code, f"{BASE}/login/oidc/callback", "192.0.2.1")

    client._keys = now, KeySet([RSAKey.generate_key(2048)])
    try:
        with pytest.raises(OidcError, match="not signed by a key"):
            await log_in()  # the keys are not read at each token, which anybody can forge
        now += 61
        assert (await log_in()).groups == ["sre"]
        drop_from_id_tokens(monkeypatch, "groups")
        assert (await log_in()).groups == ["sre"]
        oidc.roles.clear()
        assert (await log_in()).groups == []
    finally:
        await client.close()
