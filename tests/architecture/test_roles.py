"""Who may call which endpoint of which server: one table, for every credential, checked against the servers' routes."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.authentication import _derive_token
from tests.architecture.served_credentials import (
    CREDENTIALS,
    PAGE,
    PASSWORD,
    STARTS,
    WITH_USERS,
    Credential,
    basic,
    bearer,
    list_guesses,
    serving,
)

OPEN = "whoever reaches the server"
SCRAPER = "whom web.yml lets in; without users of web.yml, everybody"
UNLESS_USER = "everybody but a user of web.yml, who has to be a viewer"
SENDER = "the holder of auth.bearer_token_file, or a user who is a responder"
LOGIN = "whoever reaches the server, and 401 without a valid login in it"
LINK = "whoever reaches the server, and 403 without a valid link of a mail"
CRYPTO_VIEWER, CRYPTO_ADMIN = "a viewer of `admin`", "an admin of `admin`"
Need = str
EVERY: Mapping[str, Need] = {
    "GET /-/healthy": OPEN,
    "GET /-/ready": OPEN,
    "GET /metrics": SCRAPER,
    "GET /": Role.VIEWER,
    "GET /api/audit": Role.VIEWER,
}
RELOADED: Mapping[str, Need] = {**EVERY, "POST /-/reload": Role.ADMIN}
TABLE: Mapping[str, Mapping[str, Need]] = {
    "exporter": {
        **RELOADED,
        "GET /history": Role.VIEWER,
        "GET /api/board": Role.VIEWER,
        "GET /api/history": Role.VIEWER,
        "GET /board/{name}": Role.VIEWER,
        "GET /probe": UNLESS_USER,
    },
    "relay": {
        **RELOADED,
        "GET /console/{name}": OPEN,
        "GET /acknowledge/{id}": LINK,
        "POST /acknowledge/{id}": LINK,
        "GET /login": OPEN,
        "POST /login": LOGIN,
        "GET /login/oidc": OPEN,
        "GET /login/oidc/callback": LOGIN,
        "GET /audit": Role.VIEWER,
        "GET /deliveries": Role.VIEWER,
        "GET /deliveries/{id}": Role.VIEWER,
        "GET /deliveries/{id}/mail": Role.VIEWER,
        "GET /deliveries/{id}/open": Role.VIEWER,
        "POST /deliveries/{id}/retry": Role.RESPONDER,
        "POST /deliveries/{id}/send": Role.RESPONDER,
        "GET /events": Role.VIEWER,
        "POST /alerts": SENDER,
        "GET /channels": Role.VIEWER,
        "GET /channels/{name}": Role.VIEWER,
        "POST /channels/{name}/check": Role.RESPONDER,
        "POST /channels/{name}/test": Role.RESPONDER,
        "GET /proof": Role.VIEWER,
        "GET /api/proofs": Role.VIEWER,
        "GET /channels/-/render": Role.VIEWER,
        "POST /channels/-/render": Role.VIEWER,
        "POST /channels/-/render/mail": Role.VIEWER,
        "GET /api/channels": Role.VIEWER,
        "POST /api/channels/{name}/check": Role.RESPONDER,
        "POST /api/channels/{name}/test": Role.RESPONDER,
        "GET /api/deliveries": Role.VIEWER,
        "GET /api/deliveries/{id}": Role.VIEWER,
        "POST /api/deliveries/{id}/retry": Role.RESPONDER,
        "POST /api/deliveries/{id}/send": Role.RESPONDER,
        "POST /api/deliveries/retry": Role.ADMIN,
        "GET /api/incidents": Role.VIEWER,
        "GET /api/incidents/{id}": Role.VIEWER,
        "POST /api/incidents/{id}/acknowledge": Role.RESPONDER,
        "POST /api/incidents/{id}/unacknowledge": Role.RESPONDER,
        "GET /incidents": Role.VIEWER,
        "GET /incidents/{id}": Role.VIEWER,
        "GET /incidents/{id}/export.md": Role.VIEWER,
        "POST /incidents/{id}/acknowledge": Role.RESPONDER,
        "POST /incidents/{id}/unacknowledge": Role.RESPONDER,
        "POST /incidents/{id}/silence": Role.ADMIN,
        "GET /api/quarantine": Role.VIEWER,
        "GET /api/report": Role.VIEWER,
        "POST /api/routes/explain": Role.VIEWER,
        "GET /report": Role.VIEWER,
        "GET /report.csv": Role.VIEWER,
        "GET /routes": Role.VIEWER,
        "GET /api/quarantine/{id}": Role.ADMIN,
        "POST /api/quarantine/{id}/replay": Role.ADMIN,
        "GET /quarantine": Role.VIEWER,
        "GET /quarantine/{id}": Role.ADMIN,
        "POST /quarantine/{id}/preview": Role.ADMIN,
        "POST /quarantine/{id}/replay": Role.ADMIN,
        "POST /quarantine/retry": Role.ADMIN,
        "POST /quarantine/retry/{id}": Role.RESPONDER,
        "POST /logout": OPEN,  # the last: it ends sessions
    },
    "backend": {
        **RELOADED,
        "GET /healthz": UNLESS_USER,
        "GET /v1/records/{id}": Role.RESPONDER,
        "PUT /v1/records/{id}": Role.RESPONDER,
        "GET /admin/crypto/keys": CRYPTO_VIEWER,
        "GET /admin/crypto/census": CRYPTO_VIEWER,
        "GET /admin/crypto/rotations/{rotation_id}": CRYPTO_VIEWER,
        "GET /admin/crypto/lost": CRYPTO_VIEWER,
        **{
            f"POST /admin/crypto/{call}": CRYPTO_ADMIN
            for call in (
                *("rotate", "restore", "lease", "release", "backup"),
                *("verify", "retire", "reload", "journal", "rollback", "abandon"),
            )
        },
    },
    "emulator": {
        **EVERY,
        "GET /faults": Role.VIEWER,
        "POST /faults": Role.ADMIN,
        "DELETE /faults": Role.ADMIN,
        "DELETE /faults/{id}": Role.ADMIN,
    },
    "stand-ins": {
        **EVERY,
        "GET /page/{name}": Role.VIEWER,
        "GET /mail/{number}": Role.VIEWER,
        "GET /docs/{path}": Role.VIEWER,
        "GET /graph": Role.VIEWER,
        "GET /alertmanager/": Role.VIEWER,
        "GET /api/state": Role.VIEWER,
        "POST /api/faults": Role.ADMIN,
        "DELETE /api/faults": Role.ADMIN,
        "GET /api/kms": Role.VIEWER,
        "POST /api/kms/break": Role.ADMIN,
        "POST /api/kms/heal": Role.ADMIN,
        "GET /slack/api/{method}": OPEN,  # they ask for tokens of their own
        "POST /slack/api/{method}": OPEN,
        "POST /slack/services/{team}/{app}/{secret}": OPEN,  # the secret is in the path
        "POST /slack/upload/{file}": OPEN,  # whoever has the URL
        "GET /slack/files/{file}": Role.VIEWER,
        "POST /api/slack": Role.ADMIN,
        "POST /pagerduty/v2/enqueue": OPEN,
        "POST /pagerduty/v2/change/enqueue": OPEN,
    },
}
UNRECORDED = {
    "POST /api/routes/explain": "a question that changes nothing",
    "POST /channels/-/render": "a form that changes nothing, and is too large for an address",
    "POST /channels/-/render/mail": "likewise",
    "POST /login": "stored by itself, with the name of who has logged in",
    "POST /logout": "likewise",
    "POST /acknowledge/{id}": "likewise, with the recipients of the mail",
    "PUT /v1/records/{id}": "an application's data",
    "POST /alerts": "an event, which is kept as such",
    "POST /slack/api/{method}": "a message",
    "POST /slack/services/{team}/{app}/{secret}": "a message",
    "POST /slack/upload/{file}": "a part of a message",
    "POST /pagerduty/v2/enqueue": "an event",
    "POST /pagerduty/v2/change/enqueue": "a change event",
}
"""What changes something and is no action of somebody's on the server."""


def list_refusals(credential: Credential, need: Need, *, users: bool) -> set[int]:  # noqa: PLR0911 - one for each kind of need
    """The refusal that is due; nothing where it may call."""
    has_identity = credential.role is not None or credential.is_user
    if need == OPEN or (need in (SCRAPER, UNLESS_USER) and not users):
        return set()
    if need in (LOGIN, LINK):
        return {401} if need == LOGIN else {403}
    if need == SCRAPER:
        return set() if has_identity else {401}
    if need == SENDER:
        if credential.name == "sender" or (credential.is_user and credential.role in (Role.RESPONDER, Role.ADMIN)):
            return set()
        return {403} if credential.is_user else {401}
    if need in (CRYPTO_VIEWER, CRYPTO_ADMIN):
        if credential.crypto is None:
            return {401}
        return set() if need == CRYPTO_VIEWER or credential.crypto is Role.ADMIN else {403}
    wanted = Role.VIEWER if need == UNLESS_USER else Role(need)
    if not has_identity:
        return {401}
    return set() if credential.role and credential.role.includes(wanted) else {403}


def sent(endpoint: str) -> tuple[str, str]:
    method, path = endpoint.split()
    return method, re.sub(r"{[^}]*}", "1", path)


@pytest.mark.parametrize("name", TABLE)
async def test_every_endpoint_is_in_the_table_and_what_changes_something_is_recorded(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path) as server:
        assert server.routes.keys() == TABLE[name].keys()
        for endpoint, route in server.routes.items():
            assert isinstance(route, ProtectedRoute), f"{endpoint} does not say who may call it"
            recorded = isinstance(route.requirements, RouteRequirements) and route.requirements.action is not None
            assert recorded == (not endpoint.startswith("GET ") and endpoint not in UNRECORDED), endpoint


@pytest.mark.parametrize("users", [False, True], ids=["tokens", "users and tokens"])
@pytest.mark.parametrize("name", STARTS)
async def test_every_endpoint_is_answered_to_whom_the_table_says_and_to_nobody_else(
    name: str, users: bool, tmp_path: Path
) -> None:
    async with serving(name, tmp_path, users=users) as server, server.client("http://keypulse.example.org") as client:
        credentials = [*(WITH_USERS if users else CREDENTIALS), *(await server.log_in() if name == "relay" else [])]
        server.end_streams()
        endpoints = [*TABLE[name].items(), *([("GET /probe?debug=true", Role.VIEWER)] * (name == "exporter"))]
        for number, (endpoint, need) in enumerate(endpoints):
            for credential in [*list_guesses(number), *credentials]:
                method, path = sent(endpoint)
                answer = await client.request(method, path, headers={**PAGE, **credential.headers})
                refused = {answer.status_code} & {401, 403}
                assert refused == list_refusals(credential, need, users=users), f"{credential.name}: {endpoint}"


@pytest.mark.parametrize("name", STARTS)
async def test_no_host_gives_a_role_to_nobody_where_the_users_of_web_yml_are_the_only_credentials(
    name: str, tmp_path: Path
) -> None:
    hosts = [f"127.0.0.1{end}" for end in ("", "/login/?", "/console/?", "/alerts?", "/admin/crypto/?", "/-/healthy#")]
    async with (
        serving(name, tmp_path, closed=False, users=True) as server,
        server.client("http://127.0.0.1:9912") as client,
    ):
        server.end_streams()
        for endpoint, need in TABLE[name].items():
            refusals = list_refusals(CREDENTIALS[0], need, users=True) if need != LOGIN else set()
            for host in hosts if refusals else ():
                method, path = sent(endpoint)
                answer = await client.request(method, path, headers={**PAGE, "host": host})
                assert answer.status_code in refusals, f"{host}: {endpoint}"


def test_nothing_is_decided_by_the_address_that_starlette_builds_from_the_header_host() -> None:
    root = Path(__file__).parents[2]
    modules = [file for top in ("services", "shared", "ops") for file in (root / top).rglob("*.py")]
    wrong = [file for file in modules if re.search(r"request\.(url|base_url)\b(?!:)", file.read_text(encoding="utf-8"))]
    assert {file.relative_to(root).parts[:3] for file in wrong} <= {("ops", "demo", "stand_ins")}


async def test_no_action_happens_without_the_token_of_its_page(tmp_path: Path) -> None:
    async with serving("relay", tmp_path, users=True) as server, server.client("http://keypulse.example.org") as client:
        sessions = [each for each in await server.log_in() if each.role is Role.ADMIN]
        assert len(sessions) == 5  # each kind: two by token, by password, by OpenID Connect, by a proxy
        server.end_streams()
        browser = Credential("a browser's own dialogue", basic("cleo", PASSWORD), Role.ADMIN)
        acting = [each for each in server.routes if not each.startswith("GET ") and each != "POST /alerts"]
        assert len(acting) >= 6
        for endpoint in acting:
            method, path = sent(endpoint)
            is_page = not path.startswith(("/api/", "/-/"))
            for credential in [*sessions, browser]:
                without = {name: value for name, value in credential.headers.items() if name != "x-csrf-token"}
                for headers in (
                    without,
                    {**without, "x-csrf-token": "0" * 64},
                    {**without, "x-csrf-token": _derive_token("d" * 43)},  # of another browser
                ):
                    answer = await client.request(method, path, headers=headers, data={"csrf_token": "0" * 64})
                    is_refused = answer.status_code == 403 and "token of the page" in answer.text
                    assert is_refused == (is_page or credential is not browser), f"{credential.name}: {endpoint}"
            # A program that sends a bearer token is no browser.
            answer = await client.request(method, path, headers=bearer("admin"))
            assert answer.status_code not in {401, 403} or path in ("/login", "/acknowledge/1"), endpoint


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("name", TABLE)
async def test_another_web_page_changes_nothing_whatever_credentials_a_browser_adds(
    name: str, closed: bool, tmp_path: Path
) -> None:
    async with (
        serving(name, tmp_path, closed=closed, users=closed) as server,
        server.client("http://127.0.0.1:9912") as client,
    ):
        for endpoint in TABLE[name]:
            method, path = sent(endpoint)
            if method == "GET" and path != "/probe":
                continue
            for page in ({"origin": "https://evil.example.org"}, {"sec-fetch-site": "cross-site"}):
                headers = {**page, **(basic("cleo", PASSWORD) if closed else {})}
                if path == "/alerts" and not closed:
                    headers |= bearer("sender")
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 403, endpoint


@pytest.mark.parametrize("name", TABLE)
async def test_a_server_that_is_open_is_asked_by_names_of_this_machine_alone(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path, closed=False) as server, server.client("http://127.0.0.1:9912") as client:
        for endpoint, need in TABLE[name].items():
            method, path = sent(endpoint)
            if need not in (OPEN, LOGIN, LINK, SCRAPER, SENDER, CRYPTO_VIEWER, CRYPTO_ADMIN) and path != "/healthz":
                answer = await client.request(method, path, headers={"host": "rebound.example.org:9912"})
                assert answer.status_code == 403, endpoint
        for path in ("/metrics", "/-/healthy", "/-/ready"):
            assert (await client.get(path, headers={"host": "rebound.example.org"})).status_code in (200, 503)
            redirected = await client.get(f"{path}/", headers={"host": "rebound.example.org"})
            assert (redirected.status_code, "location" in redirected.headers) == (404, False)
