"""Credentials are found once, off the event loop; and with them a round trip works over TLS, as in production."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.gcp.credentials import CredentialsLookup
from shared.kms.port import KmsError
from shared.kms.reason import Reason
from tests.key_versions import KEY
from tests.shared.certificates import Authority
from tests.shared.kms.gcp.tls import tls_before


class Finder:
    """A lookup that blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> Credentials:
        self.calls += 1
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return AnonymousCredentials()  # type: ignore[no-untyped-call]


async def test_all_who_wait_share_one_lookup_and_the_loop_goes_on() -> None:
    finder = Finder()
    lookup = CredentialsLookup(finder)
    waiting = [asyncio.create_task(lookup.get_credentials()) for _ in range(20)]
    await asyncio.sleep(0)  # the loop turns although the lookup blocks
    finder.go_on.set()
    found = await asyncio.gather(*waiting)
    assert finder.calls == 1
    assert all(one is found[0] for one in found)
    assert await lookup.get_credentials() is found[0]


async def test_a_lookup_that_outlasts_a_call_is_a_timeout_and_then_says_what_is_missing() -> None:
    finder = Finder()
    finder.error = GoogleAuthError("could not be found")  # type: ignore[no-untyped-call]
    key = GcpKmsKey(KEY, endpoint="localhost:1", lookup=CredentialsLookup(finder))
    reasons = []
    for _ in range(2):
        with pytest.raises(KmsError) as failed:
            await key.encrypt(b"x", b"", timeout=0.1)
        reasons.append(failed.value.reason)
        finder.go_on.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "google credentials"]:
            await asyncio.to_thread(thread.join, 5)
    assert reasons == [Reason.TIMEOUT, Reason.UNAUTHENTICATED]
    assert finder.calls == 1


async def test_after_a_failure_the_next_call_reads_again() -> None:
    finder = Finder()
    finder.go_on.set()
    finder.error = RuntimeError("with a secret in it")
    lookup = CredentialsLookup(finder)
    with pytest.raises(GoogleAuthError, match="RuntimeError while looking for them"):
        await lookup.get_credentials()
    finder.error = None
    assert isinstance(await lookup.get_credentials(), AnonymousCredentials)


async def test_a_file_of_credentials_that_is_another_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "account.json"
    file.write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    finder = Finder()
    finder.go_on.set()
    lookup = CredentialsLookup(finder)
    first = await lookup.get_credentials()
    assert await lookup.get_credentials() is first
    assert not lookup.has_changed(first)
    file.unlink()  # in the middle of being replaced
    assert await lookup.get_credentials() is first
    file.write_text('{"another": "key"}')
    assert lookup.has_changed(first)
    second = await lookup.get_credentials()
    assert second is not first
    assert lookup.has_changed(first)
    assert not lookup.has_changed(second)
    assert finder.calls == 2


PROGRAM = f"""
import asyncio, sys
from shared.kms.registry import connect_key
from shared.kms.gcp.settings import GcpKeySettings
async def main():
    key = connect_key(GcpKeySettings(key={KEY!r}, endpoint=sys.argv[1]))
    encrypted = await key.encrypt(b"secret", b"aad", timeout=10)
    print((await key.decrypt(encrypted.ciphertext, b"aad", timeout=10)).plaintext.decode(), "by", key.account)
    await key.close()
asyncio.run(main())
"""


async def test_with_a_service_account_and_tls_the_round_trip_works(emulator: Emulator, tmp_path: Path) -> None:
    """In a process of its own: gRPC reads the trusted roots once."""
    authority = Authority(tmp_path)
    secret = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": "keypulse@demo.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:1/never-asked",
        "private_key_id": "1",
        "private_key": secret.decode(),
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    environment = {
        **os.environ,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(authority.ca),
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
    }
    async with tls_before(emulator, authority) as address:
        command = [sys.executable, "-c", PROGRAM, str(address)]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, "secret by keypulse@demo.iam.gserviceaccount.com\n"), done.stderr


async def test_a_refused_connection_is_replaced_only_once_there_are_new_credentials(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "account.json"
    file.write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    finder = Finder()
    finder.go_on.set()
    lookup = CredentialsLookup(finder)
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True, lookup=lookup)
    key._credentials = await lookup.get_credentials()  # which plaintext does not need
    await key.encrypt(b"x", b"", timeout=5)
    connection = key._client
    emulator.faults.add(EmulatorFault(kind="status", status="UNAUTHENTICATED"))
    for changed in (False, True):
        if changed:
            file.write_text('{"another": "key"}')
        with pytest.raises(KmsError) as refused:
            await key.encrypt(b"x", b"", timeout=5)
        assert refused.value.reason is Reason.UNAUTHENTICATED
        assert (key._client is connection) is not changed
    await key.close()
