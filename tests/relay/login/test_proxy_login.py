"""A trusted proxy names the person in a header; whoever else sends that header is nobody."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from services.relay.config import ProxyLoginSettings, RelaySettings
from tests.relay.login.served_login import build_settings, find_csrf_token, open_relay, read_audit, token

PROXY = "10.0.0.7"
ANNA = {"x-forwarded-user": "anna@example.org", "x-forwarded-groups": "everybody, sre"}


def configure(folder: Path, **keys: Any) -> RelaySettings:
    proxy = {"user_header": "X-Forwarded-User", "groups_header": "X-Forwarded-Groups", "from": ["10.0.0.7/32"]}
    roles = {"roles": {"sre": "responder", "everybody": "viewer"}}
    return build_settings(folder, admin_token_file=None, tokens=[], roles={}, proxy={**proxy, **roles, **keys})


async def test_the_person_whom_the_proxy_names_has_the_role_of_their_groups(tmp_path: Path) -> None:
    async with (
        open_relay(configure(tmp_path), tmp_path, users=False) as relay,
        relay.open_browser(peer=PROXY) as browser,
    ):
        page = await browser.get("/audit", headers=ANNA)
        assert page.status_code == 200
        assert "anna@example.org" in page.text
        assert 'action="/logout"' not in page.text  # the proxy's login is not ours to end
        csrf = {"x-csrf-token": find_csrf_token(page)}
        retry = "/api/deliveries/1/retry"
        assert (await browser.post(retry, headers=ANNA)).status_code == 403  # a browser may send it unasked
        assert (await browser.post(retry, headers={**ANNA, **csrf})).status_code == 404
        assert (await browser.post("/api/deliveries/retry?channel=one", headers={**ANNA, **csrf})).status_code == 403
        nobody = {**ANNA, "x-forwarded-groups": "others"}
        assert (await browser.get("/audit", headers=nobody)).status_code == 403
        assert (await browser.get("/audit")).status_code == 303  # without credentials nobody is in


async def test_from_anybody_else_the_header_is_ignored_counted_and_logged(tmp_path: Path) -> None:
    async with open_relay(configure(tmp_path), tmp_path, users=False) as relay:
        for number, peer in enumerate(["192.0.2.1", "10.0.0.8", "::1", ""], start=1):
            with capture_logs() as logs:
                async with relay.open_browser(peer=peer) as browser:
                    assert (await browser.get("/audit", headers={**ANNA, "accept": "*/*"})).status_code == 401
            assert relay.count_refused("/audit", "untrusted_proxy") == number
            assert relay.count_refused("/audit", "missing") == number
            assert "proxy header ignored" in [each["event"] for each in logs if each["log_level"] == "warning"]


async def test_no_second_header_and_no_unusual_name_makes_somebody_of_the_client(tmp_path: Path) -> None:
    settings = configure(tmp_path)
    async with (
        open_relay(settings, tmp_path, users=False) as relay,
        relay.open_browser(peer=f"::ffff:{PROXY}") as browser,  # as a dual-stack socket shows it
    ):
        assert (await browser.get("/audit", headers=ANNA)).status_code == 200
        for smuggled in (
            [*ANNA.items(), ("x-forwarded-user", "root")],
            [*ANNA.items(), ("x-forwarded-groups", "sre")],
            [("x_forwarded_user", "anna"), ("x-forwarded-groups", "sre")],
            [("x-forwarded-user", ""), ("x-forwarded-groups", "sre")],
            [("x-forwarded-user", "x" * 300), ("x-forwarded-groups", "sre")],
            [(b"x-forwarded-user", b"a\xffb"), (b"x-forwarded-groups", b"sre")],
            [("x-forwarded-user", "sender"), ("x-forwarded-groups", "sre")],  # of another caller in the audit
            [("x-forwarded-user", "anonymous"), ("x-forwarded-groups", "sre")],
            [("x-forwarded-user", "Sender"), ("x-forwarded-groups", "sre")],  # and its reader takes them for one
            [("x-forwarded-user", "ADMIN"), ("x-forwarded-groups", "sre")],
        ):
            answer = await browser.get("/audit", headers=[*smuggled, ("accept", "*/*")])
            assert answer.status_code == 401, smuggled
        utf8 = [(b"x-forwarded-user", "Zoë".encode()), (b"x-forwarded-groups", b"sre")]
        assert "Zoë" in (await browser.get("/audit", headers=utf8)).text


async def test_the_header_is_believed_for_the_host_of_the_public_url_alone(tmp_path: Path) -> None:
    for public_url, own, others in (
        (
            "https://relay.example.org",
            ["relay.example.org", "Relay.Example.org:443"],
            [
                "other.example.org",
                "relay.example.org:80",
                "relay.example.org.evil",
                "relay.example.org/x",
                "127.0.0.1",
                "",
            ],
        ),
        ("http://relay.example.org:8080", ["relay.example.org:8080"], ["relay.example.org", "relay.example.org:80"]),
    ):
        settings = configure(tmp_path)
        auth = settings.auth.model_copy(update={"public_url": public_url})
        async with (
            open_relay(settings.model_copy(update={"auth": auth}), tmp_path, users=False) as relay,
            relay.open_browser(peer=PROXY) as browser,
        ):
            for hosts, status in ((own, 200), (others, 401)):
                for host in hosts:
                    headers = {**ANNA, "host": host, "accept": "*/*"}
                    assert (await browser.get("/audit", headers=headers)).status_code == status, host
            assert relay.count_refused("/audit", "untrusted_proxy") == len(others)


def test_a_proxy_without_the_public_url_is_a_warning(tmp_path: Path) -> None:
    settings = configure(tmp_path)
    assert [key for key, _ in settings.find_warnings()] == ["auth.public_url"]
    auth = settings.auth.model_copy(update={"public_url": "https://relay.example.org"})
    assert list(settings.model_copy(update={"auth": auth}).find_warnings()) == []


async def test_who_has_a_token_is_who_the_token_says_behind_the_proxy_too(tmp_path: Path) -> None:
    settings = build_settings(
        tmp_path,
        proxy={"user_header": "X-Forwarded-User", "from": ["10.0.0.7/32"], "roles": {"zoe": "viewer"}},
    )
    async with (
        open_relay(settings, tmp_path, users=False) as relay,
        relay.open_browser(peer=PROXY) as browser,
    ):
        user_of_ours = {"x-forwarded-user": "anna", "accept": "*/*"}
        assert (await browser.get("/audit", headers=user_of_ours)).status_code == 401  # anna is somebody in web.yml
        named = {"x-forwarded-user": "zoe"}
        bearer = {"authorization": f"Bearer {token('admin')}"}
        retry = "/api/deliveries/retry?channel=one"
        assert (await browser.post(retry, headers={**named, **bearer})).status_code == 202
        form = {"csrf_token": find_csrf_token(await browser.get("/login", headers=named)), "secret": token("admin")}
        assert (await browser.post("/login", data=form, headers=named)).status_code == 303
        page = await browser.get("/audit", headers=named)
        assert "zoe" not in page.text
        done = await browser.post(retry, headers={**named, "x-csrf-token": find_csrf_token(page)})
        assert done.status_code == 202
        assert [entry[0] for entry in await read_audit(relay)] == ["admin", "admin", "admin"]


@pytest.mark.parametrize(
    "changes",
    [
        {"from": []},
        {"from": ["0.0.0.0/0"]},
        {"from": ["::/0"]},
        {"user_header": "Authorization"},
        {"user_header": "X User"},
        {"roles": {}},
        {"roles": {"sre": "root"}},
    ],
)
def test_a_configuration_that_believes_everybody_or_nobody_is_refused(changes: dict[str, Any]) -> None:
    valid = {"user_header": "X-Forwarded-User", "from": ["10.0.0.7/32"], "roles": {"sre": "viewer"}}
    ProxyLoginSettings.model_validate(valid)
    with pytest.raises(ValidationError):
        ProxyLoginSettings.model_validate({**valid, **changes})
