"""What a real OpenBao answers to each fault → the reason, its cause, and what the commands that fix it need."""

import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from shared.kms.port import KmsError, KmsKeyAdmin
from shared.kms.reason import Cause, Reason
from shared.kms.transit.client import TransitKey
from shared.kms.transit.errors import Answer, parse_error
from shared.kms.transit.login import Login
from shared.kms.transit.settings import TransitKeySettings
from tests.bao import Bao, Transit, running_bao
from tests.reserved_port import reserve_port
from tests.shared.certificates import LOCALHOST, Authority
from tests.shared.kms.transit.conftest import Connect

PLAINTEXT, AAD = b"a data key of 32 bytes, or so....", b"what it belongs to"
TIMEOUT = 5.0


class AuditLog:
    """Where OpenBao's audit device sends its entries; while it is closed, nothing of it can be written."""

    def __init__(self) -> None:
        self._reserved = ExitStack()
        self.port = self._reserved.enter_context(reserve_port()).port
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._reserved.close()

    def open(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._connections.append(self._server.accept()[0])


async def fail(call: Awaitable[object]) -> KmsError:
    with pytest.raises(KmsError) as failed:
        await call
    return failed.value


async def fail_to_encrypt(key: KmsKeyAdmin) -> KmsError:
    return await fail(key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT))


def describe(error: KmsError) -> tuple[Reason, Cause]:
    return error.reason, error.cause


def rotate(mounted: Transit) -> None:
    mounted.change("keys/ledger/rotate")


def delete_key(mounted: Transit) -> None:
    mounted.create_key("another")
    mounted.change("keys/ledger/config", deletion_allowed=True)
    mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger")


def soft_delete(mounted: Transit) -> None:
    mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger/soft-delete")


def raise_floor(mounted: Transit) -> None:
    rotate(mounted)
    mounted.change("keys/ledger/config", min_decryption_version=2)


def trim(mounted: Transit) -> None:
    raise_floor(mounted)
    mounted.change("keys/ledger/config", min_encryption_version=2)
    mounted.change("keys/ledger/trim", min_available_version=2)


def limit_rate(mounted: Transit) -> None:
    mounted.bao.call("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
    limit = {"path": f"{mounted.name}/", "rate": 1, "interval": "60s"}
    mounted.bao.call("POST", f"sys/quotas/rate-limit/{mounted.name}", limit)
    mounted.read()


def unmount(mounted: Transit) -> None:
    mounted.bao.call("DELETE", f"sys/mounts/{mounted.name}")


def deny(*parts: str) -> Callable[[Transit], None]:
    def write(mounted: Transit) -> None:
        mounted.set_policy(**{part: ["deny"] for part in parts})

    return write


ENCRYPT, DECRYPT, BOTH = ("encrypt",), ("decrypt",), ("encrypt", "decrypt")


@pytest.mark.parametrize(
    ("break_it", "operations", "reason", "cause", "values"),
    [
        (deny("encrypt"), ENCRYPT, Reason.PERMISSION_DENIED, Cause.ROLE_MISSING, {"permission": "encrypt"}),
        (deny("decrypt", "keys"), DECRYPT, Reason.PERMISSION_DENIED, Cause.ROLE_MISSING, {"permission": "decrypt"}),
        (delete_key, BOTH, Reason.KEY_NOT_FOUND, Cause.NONE, {}),
        (soft_delete, BOTH, Reason.KEY_DISABLED, Cause.SOFT_DELETED, {}),
        (raise_floor, DECRYPT, Reason.KEY_DISABLED, Cause.VERSION_FLOOR, {"version": "1"}),
        (trim, DECRYPT, Reason.KEY_DESTROYED, Cause.TRIMMED, {"version": "1"}),
        (limit_rate, BOTH, Reason.QUOTA_EXHAUSTED, Cause.RATE_LIMIT, {}),
        (unmount, BOTH, Reason.KEY_NOT_FOUND, Cause.MOUNT_MISSING, {}),
    ],
)
async def test_a_fault_has_its_reason_its_cause_and_commands_that_a_person_can_type(
    mounted: Transit,
    connect: Connect,
    break_it: Callable[[Transit], None],
    operations: tuple[str, ...],
    reason: Reason,
    cause: Cause,
    values: dict[str, str],
) -> None:
    key = connect(mounted)
    ciphertext = (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).ciphertext
    break_it(mounted)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "encrypt": lambda: key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT),
        "decrypt": lambda: key.decrypt(ciphertext, AAD, timeout=TIMEOUT),
    }
    for operation in operations:
        error = await fail(calls[operation]())
        assert describe(error) == (reason, cause), error
        assert error.values == values
        assert PLAINTEXT.decode() not in error.detail
        assert (error.retry_after or 0) >= (30 if cause is Cause.RATE_LIMIT else 0)
    known = {"target": "ledger-kek", **error.values}
    for fix in key.profile.fixes.build(reason, cause, f"transit:{mounted.name}/ledger", known):
        mounted.bao.run(fix.command)
    if cause in {Cause.VERSION_FLOOR, Cause.SOFT_DELETED}:
        assert (await calls["decrypt"]()).plaintext == PLAINTEXT
    if cause is Cause.ROLE_MISSING:
        granted = connect(mounted, mounted.bao.create_token("keypulse-ledger"))
        encrypted = await granted.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
        assert (await granted.decrypt(encrypted.ciphertext, AAD, timeout=TIMEOUT)).plaintext == PLAINTEXT


def revoke(bao: Bao, token: str) -> None:
    bao.call("POST", "auth/token/revoke", {"token": token})


def use_up(bao: Bao, token: str) -> None:
    for _ in range(3):
        bao.call("GET", "auth/token/lookup-self", token=token)


@pytest.mark.parametrize(
    ("options", "break_it"),
    [(None, None), ({}, revoke), ({"num_uses": 3}, use_up)],
)
async def test_a_token_that_is_refused_is_told_from_a_policy_and_a_new_one_in_the_file_is_used(
    mounted: Transit,
    connect: Connect,
    tmp_path: Path,
    options: dict[str, Any] | None,
    break_it: Callable[[Bao, str], None] | None,
) -> None:
    token = "s.nobody" if options is None else mounted.create_token(**options)
    key = connect(mounted, token)
    if break_it:
        break_it(mounted.bao, token)
    for error in (await fail_to_encrypt(key), await fail(key.describe_key(timeout=TIMEOUT))):
        assert describe(error) == (Reason.UNAUTHENTICATED, Cause.TOKEN_EXPIRED)
    (tmp_path / f"{mounted.name}.token").write_text(mounted.create_token())
    assert (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).version == "1"


async def test_a_namespace_that_does_not_exist_and_one_that_does(
    shared_bao: Bao, mounted: Transit, connect: Connect
) -> None:
    missing = connect(mounted, shared_bao.token, namespace="nowhere")
    expected = (Reason.KEY_NOT_FOUND, Cause.NAMESPACE_MISSING)
    assert describe(await fail_to_encrypt(missing)) == expected
    team = f"team-{mounted.name}"
    shared_bao.call("POST", f"sys/namespaces/{team}", {})
    shared_bao.call("POST", f"{team}/sys/mounts/transit", {"type": "transit"})
    shared_bao.call("POST", f"{team}/transit/keys/ledger", {})
    there = connect(mounted, shared_bao.token, namespace=team, mount="transit")
    encrypted = await there.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
    assert (await there.decrypt(encrypted.ciphertext, AAD, timeout=TIMEOUT)).plaintext == PLAINTEXT


@pytest.mark.parametrize("options", [{"type": "ed25519"}, {"type": "hmac", "key_size": 32}, {"derived": True}])
async def test_a_key_without_authenticated_data_is_refused_before_anything_is_encrypted(
    mounted: Transit, connect: Connect, options: dict[str, Any]
) -> None:
    mounted.create_key("other", **options)
    key = connect(mounted, key="other")
    for error in (await fail_to_encrypt(key), await fail(key.describe_key(timeout=TIMEOUT))):
        assert error.reason is Reason.INVALID_REQUEST
        assert "of one of the types aes256-gcm96, aes128-gcm96, chacha20-poly1305" in error.detail
    mounted.set_policy(keys=["deny"])
    unreadable = await fail_to_encrypt(connect(mounted, key="other"))
    assert unreadable.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(("type_"), ["aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"])
async def test_each_type_with_authenticated_data_makes_a_round_trip(
    mounted: Transit, connect: Connect, type_: str
) -> None:
    mounted.create_key("other", type=type_)
    key = connect(mounted, key="other")
    encrypted = await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)
    assert (await key.decrypt(encrypted.ciphertext, AAD, timeout=TIMEOUT)).plaintext == PLAINTEXT


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"address": "http://127.0.0.1:1"}, Cause.CONNECT),
        ({"address": "https://nobody.invalid"}, Cause.DNS),
        ({"address": "https://127.0.0.1:PORT"}, Cause.TLS),
    ],
)
async def test_where_the_network_fails_the_cause_is_the_phase(
    mounted: Transit, connect: Connect, changes: dict[str, str], cause: Cause
) -> None:
    address = changes["address"].replace("PORT", str(mounted.bao.port))
    key = connect(mounted, address=address, proxy="none")
    error = await fail_to_encrypt(key)
    assert describe(error) == (Reason.UNAVAILABLE, cause)
    assert "/v1/" not in error.detail
    (*_, last) = await key.measure_connectivity(timeout=TIMEOUT)
    assert last.cause is cause


async def test_a_server_that_is_silent_is_a_timeout(mounted: Transit, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        key = connect(mounted, address=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert describe(await fail(key.encrypt(PLAINTEXT, AAD, timeout=0.05))) == (Reason.TIMEOUT, Cause.NONE)


@pytest.mark.parametrize(
    ("status", "body", "reason", "cause"),
    [
        (307, b"", Reason.UNAVAILABLE, Cause.STANDBY),
        (
            500,
            b'{"errors":["local node not active but active cluster node not found"]}',
            Reason.UNAVAILABLE,
            Cause.STANDBY,
        ),
        (500, b'{"errors":["internal error"]}', Reason.UNAVAILABLE, Cause.NONE),
        (403, b'{"errors":["permission denied","invalid token"]}', Reason.UNAUTHENTICATED, Cause.TOKEN_EXPIRED),
        (413, b'{"errors":["http: request body too large"]}', Reason.INVALID_REQUEST, Cause.NONE),
        (503, b"<html>no upstream</html>", Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER),
        (403, b"<html>blocked</html>", Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER),
        (400, b'{"errors":null}', Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER),
    ],
)
def test_answers_that_no_single_node_gives(status: int, body: bytes, reason: Reason, cause: Cause) -> None:
    """The first two are of a standby, as in tests/exporter/test_transit_faults.py; the fourth is Vault's."""
    assert describe(parse_error(Answer(status, body))) == (reason, cause)


async def test_a_seal_and_a_blocked_audit_device_are_told_and_the_key_works_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, secret = authority.sign("bao", *LOCALHOST)
    cert_file, key_file = authority.sign("keypulse")
    listener = (
        f'tls_cert_file = "{certificate}"\n  tls_key_file = "{secret}"\n  tls_client_ca_file = "{authority.ca}"\n'
        "  tls_require_and_verify_client_cert = true"
    )
    now = 0.0
    with AuditLog() as log:
        options = f'address = "127.0.0.1:{log.port}"\n  socket_type = "tcp"'
        audit = f'audit "socket" "log" {{\n  options = {{\n  {options}\n  }}\n}}'
        files = {"ca": authority.ca, "client": (cert_file, key_file)}
        with running_bao(tmp_path, listener=listener, stanzas=audit, **files) as bao:
            tls = {"ca_file": authority.ca, "cert_file": cert_file, "key_file": key_file}
            own = {"namespace": "team", "mount": "transit"}
            bao.call("POST", "sys/namespaces/team", {})
            bao.call("POST", "team/sys/mounts/transit", {"type": "transit"})
            bao.call("POST", "team/transit/keys/ledger", {})
            usual = bao.mount().build_settings(tmp_path, token=bao.token)
            settings = TransitKeySettings.model_validate({**usual, **tls, **own})
            key = TransitKey(settings, clock=lambda: now)
            assert (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).version == "1"
            bao.seal()
            sealed = await fail_to_encrypt(key)
            assert describe(sealed) == (Reason.UNAVAILABLE, Cause.SEALED)
            assert sealed.detail == "HTTP 503: Vault is sealed; 0 of 1 shares are given"
            other = TransitKey(settings, login=Login(settings.auth))
            assert (await fail_to_encrypt(other)).detail == sealed.detail, "where a token is not known yet"
            await other.close()
            bao.unseal()
            assert (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).version == "1"
            log.close()
            assert describe(await fail_to_encrypt(key)) == (Reason.UNAVAILABLE, Cause.NONE)
            now = 9.9
            assert describe(await fail_to_encrypt(key)) == (Reason.UNAVAILABLE, Cause.NONE)
            now = 10.0
            assert describe(await fail_to_encrypt(key)) == (Reason.UNAVAILABLE, Cause.AUDIT_BLOCKED)
            log.open()
            assert (await key.encrypt(PLAINTEXT, AAD, timeout=TIMEOUT)).version == "1"
            assert [phase.error for phase in await key.measure_connectivity(timeout=TIMEOUT)] == [None] * 3
            clock = await key.read_service_clock(timeout=TIMEOUT)
            assert clock
            assert abs(clock - time.time()) < 60
            await key.close()
            no_certificate = TransitKey(settings.model_copy(update={"cert_file": None, "key_file": None}))
            assert (await fail_to_encrypt(no_certificate)).reason is Reason.UNAVAILABLE
            await no_certificate.close()
