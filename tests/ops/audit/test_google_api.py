"""What the SDK's client does where there is no answer, or none that can be read."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.auth.exceptions import DefaultCredentialsError, RefreshError

from ops.audit.google_api import ErrorKind, GoogleApi, GoogleError
from tests.ops.audit.conftest import Waits
from tests.ops.audit.server import Fault, RefusedError, Stand
from tests.tinyproxy import NOT_LOOPBACK, tinyproxy

SINK: dict[str, Any] = {"sinkName": "projects/acme-prod/sinks/kms-audit-storage"}
GET_SINK = "logging.projects.sinks.get"


@contextmanager
def client(url: str | None, waits: Waits) -> Iterator[GoogleApi]:
    google = GoogleApi(waits.sleep, lambda: 0.0, url)
    try:
        yield google
    finally:
        google.close()


def test_a_refused_connection_is_tried_five_times_and_then_a_sentence(waits: Waits) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with client(f"http://127.0.0.1:{bound.getsockname()[1]}", waits) as google, pytest.raises(GoogleError) as error:
            google.call(GET_SINK, **SINK)
    assert "got no answer that can be read (ConnectionRefusedError); check whether this machine" in str(error.value)
    assert waits.pauses == [1, 2, 4, 8]


def test_the_environments_proxy_is_used_and_may_refuse(
    waits: Waits, stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = stand.url.replace("127.0.0.1", NOT_LOOPBACK)
    with tinyproxy(tmp_path, login=True) as proxy:
        for login, address in ((proxy.url_with_login, beyond), ("http://127.0.0.1:1", stand.url)):
            monkeypatch.setenv("HTTP_PROXY", login)
            with client(address, waits) as google, pytest.raises(GoogleError) as answered:
                google.call(GET_SINK, **SINK)
            assert answered.value.kind is ErrorKind.MISSING
        assert proxy.requests == [f"CONNECT {urlsplit(beyond).netloc}"]
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with client(beyond, waits) as google, pytest.raises(GoogleError, match="got no answer that can be read"):
            google.call(GET_SINK, **SINK)


def test_a_quota_is_obeyed_and_given_up_on_in_bounded_time(waits: Waits, stand: Stand) -> None:
    stand.faults.append(Fault(GET_SINK, times=9, refuse=RefusedError(429, "Quota exceeded")))
    with (
        client(stand.url, waits) as google,
        pytest.raises(GoogleError, match=r"still fails with 429 \(Quota exceeded\)"),
    ):
        google.call(GET_SINK, **SINK)
    assert waits.pauses == [7, 7, 7, 8]


def test_missing_credentials_are_a_sentence(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> None:
        raise DefaultCredentialsError

    monkeypatch.setattr("google.auth.default", none)
    with client(None, waits) as google, pytest.raises(GoogleError, match="gcloud auth application-default login"):
        google.call(GET_SINK, **SINK)


def test_credentials_that_have_ended_are_a_sentence_without_what_they_say(
    waits: Waits, monkeypatch: pytest.MonkeyPatch, stand: Stand
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise RefreshError("invalid_grant: hunter2")  # type: ignore[no-untyped-call]

    with client(stand.url, waits) as google:
        monkeypatch.setattr("google.auth.credentials.AnonymousCredentials.before_request", ended)
        with pytest.raises(GoogleError, match="application-default login") as error:
            google.call(GET_SINK, **SINK)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
