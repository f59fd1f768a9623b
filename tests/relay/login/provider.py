"""A real provider of OpenID Connect on this machine, which sees to PKCE, and remembers what it was asked."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of authlib, whose older part the provider uses
    import flask
    import oidc_provider_mock
    from oidc_provider_mock._app import OpenIDCode
    from oidc_provider_mock._server import _threaded_server


@dataclass
class Provider:
    """A running one."""

    issuer: str
    app: Any
    challenges: dict[str, str] = field(default_factory=dict)
    """Of PKCE, by code."""
    code_requests: list[Mapping[str, str]] = field(default_factory=list)
    """The form of each exchange of a code."""
    authorizations: list[str] = field(default_factory=list)
    """The header of each of them."""
    discovery: dict[str, Any] = field(default_factory=dict)
    """What the discovery document says instead."""
    discovery_count: int = 0
    """How often that was read."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Cleared, an exchange of a code waits."""

    async def set_person(self, subject: str, **claims: Any) -> None:
        async with httpx2.AsyncClient() as client:
            answer = await client.put(f"{self.issuer}/users/{subject}", json=claims)
        assert answer.status_code == 204

    async def log_in(self, url: str, subject: str, **form: str) -> str:
        """The address where the provider sends the browser of a person who was sent to `url`."""
        async with httpx2.AsyncClient() as client:
            answer = await client.post(url, data={"sub": subject, **form})
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]


@contextmanager
def open_provider() -> Iterator[Provider]:
    app = oidc_provider_mock.app()
    provider = Provider("", app)
    provider.may_answer.set()

    def check_verifier() -> Any:
        form = flask.request.form
        if flask.request.path != "/oauth2/token":
            return None
        provider.code_requests.append(dict(form))
        provider.authorizations.append(flask.request.headers.get("authorization", ""))
        assert provider.may_answer.wait(60)
        if create_s256_code_challenge(form.get("code_verifier", "")) != provider.challenges.get(form["code"]):
            return flask.jsonify({"error": "invalid_grant"}), 400
        return None

    def record_challenge(response: Any) -> Any:
        returned = parse_qs(urlsplit(response.headers.get("location", "")).query)
        if flask.request.path == "/oauth2/authorize" and "code" in returned:
            assert flask.request.args["code_challenge_method"] == "S256"
            provider.challenges[returned["code"][0]] = flask.request.args["code_challenge"]
        return response

    def change_discovery(response: Any) -> Any:
        provider.discovery_count += flask.request.path == "/.well-known/openid-configuration"
        if flask.request.path == "/.well-known/openid-configuration" and provider.discovery:
            response.set_data(flask.json.dumps({**response.get_json(), **provider.discovery}))
        return response

    app.before_request(check_verifier)
    app.after_request(record_challenge)
    app.after_request(change_discovery)
    with _threaded_server(app, poll_interval=0.01) as server:
        provider.issuer = f"http://localhost:{server.server_port}"
        yield provider


def drop_from_id_tokens(monkeypatch: pytest.MonkeyPatch, claim: str) -> None:
    """From now on only the userinfo has this claim."""
    complete = OpenIDCode.generate_user_info

    def generate(self: Any, user: Any, scope: str) -> dict[str, Any]:
        return {name: value for name, value in complete(self, user, scope).items() if name != claim}

    monkeypatch.setattr(OpenIDCode, "generate_user_info", generate)
