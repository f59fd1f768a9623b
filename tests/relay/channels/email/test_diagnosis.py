"""The checks of a mail server, against a real one: each stage that fails is a line of its own, and nothing is sent."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from shared.check import Check, CheckResult
from shared.config.settings import Address
from shared.process.doctor import run_checks_concurrently
from tests.relay.channels.conftest import TcpServer
from tests.relay.channels.email.mail_server import StartServer, connect
from tests.relay.channels.examples import SECRET

STAGES = ["mail connection", "mail login", "mail sender", "mail recipients"]


async def diagnose(secret_file: Path, address: Address, **changes: Any) -> dict[str, CheckResult]:
    channel = connect(secret_file, address, **changes)

    async def opens() -> str:
        return "opens"

    try:
        checks = [Check("mail.password_file", opens), *channel.list_checks("mail")]
        results = await run_checks_concurrently(checks, timeout=5)
    finally:
        await channel.close()
    return {result.name: result for result in results if result.name != "mail.password_file"}


async def test_each_stage_passes_with_tls_and_a_login_and_nothing_is_sent(
    secret_file: Path, mail_server: StartServer, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    context, certificate_file = certificate
    server = await mail_server(starttls=context)
    trusted = {"host": "localhost", "tls": "starttls", "ca_file": certificate_file}
    results = await diagnose(secret_file, server.address, **trusted)
    assert [(name, result.is_ok) for name, result in results.items()] == [(stage, True) for stage in STAGES]
    assert results["mail login"].detail == "keypulse is accepted"
    assert results["mail recipients"].detail == "secops@example.org, oncall@example.org accepted"
    assert server.accepted == []


@pytest.mark.parametrize(
    ("replies", "passwords", "stage", "error", "hint"),
    [
        ({}, {b"another"}, 1, "535", "correct `username`, or put the current password into `password_file`"),
        ({"MAIL": "550 5.7.1 no such sender"}, None, 2, "550 5.7.1 no such sender", "set a `from` that the server"),
        ({"RCPT": "550 5.1.1 who?"}, None, 3, "secops@example.org (550 5.1.1 who?), oncall@", "correct `to`"),
        ({"RCPT_oncall@example.org": "451 4.7.1 later"}, None, 3, "oncall@example.org (451", "may be greylisting"),
    ],
)
async def test_the_stage_that_fails_is_named_and_those_behind_it_are_skipped(
    replies: dict[str, str],
    passwords: set[bytes] | None,
    stage: int,
    error: str,
    hint: str,
    secret_file: Path,
    mail_server: StartServer,
) -> None:
    server = await mail_server(**replies)
    server.passwords = passwords or server.passwords
    results = list((await diagnose(secret_file, server.address)).values())
    assert [result.is_ok for result in results] == [n < stage for n in range(4)]
    assert error in results[stage].detail
    assert hint in results[stage].hint
    assert all(result.detail.startswith("skipped") for result in results[stage + 1 :])
    assert SECRET not in str(results)
    assert server.accepted == []


async def test_a_server_that_never_greets_is_an_error_of_the_connection(secret_file: Path, tcp: TcpServer) -> None:
    async def hang(reader: Any, _writer: Any) -> None:
        await reader.read()

    address = await tcp(hang)
    channel = connect(secret_file, address, username=None, password_file=None)
    try:
        results = await run_checks_concurrently(channel.list_checks("mail"), timeout=0.2)
    finally:
        await channel.close()
    assert results[0].detail == "no answer within 0.2 s"
