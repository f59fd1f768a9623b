"""Each role against each action of the relay, by token and by session, and every action by another site's page."""

from pathlib import Path

import httpx2
import pytest

from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from tests.relay.login.served_login import Relay, build_settings, find_csrf_token, log_in, open_relay, read_audit, token

ACTIONS = {
    "/api/channels/{name}/check": Role.RESPONDER,
    "/api/channels/{name}/test": Role.RESPONDER,
    "/api/deliveries/retry": Role.ADMIN,
    "/api/deliveries/{id}/retry": Role.RESPONDER,
    "/api/deliveries/{id}/send": Role.RESPONDER,
    "/api/incidents/{id}/acknowledge": Role.RESPONDER,
    "/api/incidents/{id}/unacknowledge": Role.RESPONDER,
    "/api/quarantine/{id}/replay": Role.ADMIN,
    "/channels/{name}/check": Role.RESPONDER,
    "/channels/{name}/test": Role.RESPONDER,
    "/deliveries/{id}/retry": Role.RESPONDER,
    "/deliveries/{id}/send": Role.RESPONDER,
    "/incidents/{id}/acknowledge": Role.RESPONDER,
    "/incidents/{id}/silence": Role.ADMIN,
    "/incidents/{id}/unacknowledge": Role.RESPONDER,
    "/quarantine/retry": Role.ADMIN,
    "/quarantine/retry/{id}": Role.RESPONDER,
    "/quarantine/{id}/preview": Role.ADMIN,
    "/quarantine/{id}/replay": Role.ADMIN,
}
CHANGE_NOTHING = {
    "/api/routes/explain": Role.VIEWER,
    "/channels/-/render": Role.VIEWER,
    "/channels/-/render/mail": Role.VIEWER,
}
FOR_EVERYBODY = {"/acknowledge/{id}", "/alerts", "/login", "/logout"}
"""With rules of their own."""
HOLDERS = {Role.VIEWER: "dora", Role.RESPONDER: "emil", Role.ADMIN: "admin"}
NOBODY = "99"


def fill_in(path: str) -> str:
    """A path about something that is not there, so that nothing is done."""
    return path.format(id=NOBODY, name=NOBODY, delivery=NOBODY)


def read_posts(relay: Relay) -> dict[str, RouteRequirements]:
    routes = [each for each in relay.app.routes if isinstance(each, ProtectedRoute) and "POST" in (each.methods or ())]
    return {each.path: each.requirements for each in routes if isinstance(each.requirements, RouteRequirements)}


def is_let_in(answer: httpx2.Response) -> bool:
    return answer.status_code not in {401, 403} and not answer.headers.get("location", "").startswith("/login")


async def test_every_post_is_known_and_every_action_has_a_name_for_the_audit(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay:
        posts = read_posts(relay)
    assert posts.keys() == ACTIONS.keys() | CHANGE_NOTHING.keys() | FOR_EVERYBODY
    assert {path for path, requires in posts.items() if requires.action} == ACTIONS.keys()


@pytest.mark.parametrize("role", Role)
async def test_a_role_may_do_its_actions_and_no_other_by_token_and_by_session(role: Role, tmp_path: Path) -> None:
    expected = {path: role.includes(required) for path, required in (ACTIONS | CHANGE_NOTHING).items()}
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        bearer = {"authorization": f"Bearer {token(HOLDERS[role])}", "accept": "*/*"}
        by_token = {path: await browser.post(fill_in(path), headers=bearer) for path in expected}
        assert {path: is_let_in(answer) for path, answer in by_token.items()} == expected

        assert (await log_in(browser, secret=token(HOLDERS[role]))).status_code == 303
        csrf = {"x-csrf-token": find_csrf_token(await browser.get("/"))}
        by_session = {path: await browser.post(fill_in(path), headers=csrf) for path in expected}
        assert {path: is_let_in(answer) for path, answer in by_session.items()} == expected
        assert {answer.status_code for path, answer in by_session.items() if not expected[path]} <= {403}

        for path in expected:  # nothing without the token of the page, and nothing by another site with it
            assert (await browser.post(fill_in(path))).status_code == 403, path
            foreign = await browser.post(fill_in(path), headers=csrf | {"sec-fetch-site": "same-site"})
            assert foreign.status_code == 403, path
        recorded = [entry[2] for entry in await read_audit(relay)]
    assert recorded == ["login"]  # nothing was there to be changed


async def test_an_admin_alone_reloads_by_token_and_by_session(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay:
        for role, name in HOLDERS.items():
            expected = 200 if role is Role.ADMIN else 403
            async with relay.open_browser() as browser:
                bearer = {"authorization": f"Bearer {token(name)}", "accept": "*/*"}
                assert (await browser.post("/-/reload", headers=bearer)).status_code == expected
                await log_in(browser, secret=token(name))
                csrf = {"x-csrf-token": find_csrf_token(await browser.get("/"))}
                assert (await browser.post("/-/reload", headers=csrf)).status_code == expected
                assert (await browser.post("/-/reload")).status_code == 403
        done = [entry for entry in await read_audit(relay) if entry[2] != "login"]
    assert done == [("admin", "192.0.2.1", "reload", "")] * 2


async def test_without_credentials_nothing_is_done(tmp_path: Path) -> None:
    async with open_relay(build_settings(tmp_path), tmp_path) as relay, relay.open_browser() as browser:
        for path in (*ACTIONS, *CHANGE_NOTHING, "/alerts", "/-/reload"):
            answer = await browser.post(fill_in(path), headers={"accept": "*/*"})
            assert answer.status_code in {401, 403}, path
        assert await read_audit(relay) == []
