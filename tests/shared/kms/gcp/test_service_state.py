"""The third question of a diagnosis: is the API enabled? Asked by HTTPS, with a token that may read it and no more."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2 import service_account

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.config.settings import Address
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.gcp.credentials import CredentialsLookup
from shared.kms.port import Diagnosis
from shared.kms.reason import Cause
from shared.net.egress import EgressSettings
from tests.key_versions import KEY
from tests.shared.certificates import LOCALHOST, Authority
from tests.shared.kms.gcp.tls import tls_before

USE_TO_ENCRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt"
TOKEN = "a-token-that-nobody-may-see"


class Google:
    """A token server, and Service Usage behind TLS."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | bytes = {"state": "ENABLED"}
        self.login: tuple[int, dict[str, Any]] = 200, {"access_token": TOKEN, "expires_in": 3600}
        self.requests: list[web.BaseRequest] = []
        self.addresses: list[Address] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/token":
            return web.json_response(self.login[1], status=self.login[0])
        if isinstance(self.state, bytes):
            return web.Response(body=self.state)
        return web.json_response(self.state, status=200 if "state" in self.state else 403)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def google(authority: Authority) -> AsyncIterator[Google]:
    google = Google()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("server", *LOCALHOST))
    runner = web.ServerRunner(web.Server(google.answer, access_log=None), shutdown_timeout=0)
    await runner.setup()
    for tls in (None, context):
        site = web.TCPSite(runner, "localhost", 0, ssl_context=tls)
        await site.start()
    google.addresses = [Address("localhost", address[1]) for address in runner.addresses if ":" not in address[0]]
    yield google
    await runner.cleanup()


@pytest.fixture
async def diagnose(emulator: Emulator, authority: Authority, google: Google) -> AsyncIterator[Any]:
    secret = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    tokens, service_usage = google.addresses
    account = {"client_email": "k@demo.iam.gserviceaccount.com", "private_key": secret.decode(), "private_key_id": "1"}

    def find() -> Any:
        return service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            {**account, "token_uri": f"http://{tokens}/token"}, scopes=["https://www.googleapis.com/auth/cloudkms"]
        )

    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(tls_before(emulator, authority))
        egress = EgressSettings(ca_file=authority.ca, proxy="none")
        key = GcpKmsKey(
            KEY, endpoint=str(address), lookup=CredentialsLookup(find), egress=egress, service_usage=service_usage
        )
        stack.push_async_callback(key.close)

        async def ask() -> Diagnosis:
            return await key.explain_denial(USE_TO_ENCRYPT, timeout=5)

        yield ask


async def test_a_disabled_api_is_the_cause_and_its_state_is_read_with_a_scope_for_reading(
    diagnose: Any, google: Google
) -> None:
    google.state = {"state": "DISABLED", "config": {"title": "x" * 30_000}}
    diagnosis = await diagnose()
    assert (diagnosis.cause, diagnosis.text) == (Cause.API_DISABLED, "the Cloud KMS API is disabled in demo")
    assert diagnosis.values["consumer"] == "projects/demo"
    assert [answer.question for answer in diagnosis.answers] == ["test_permissions", "get_key", "get_service"]
    login, asked = google.requests
    assert asked.path == "/v1/projects/demo/services/cloudkms.googleapis.com"
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert login.path == "/token"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"state": "ENABLED"}, "state of the Cloud KMS API in demo: ENABLED"),
        ({"error": {"message": "Permission denied to get service"}}, "not told: Permission denied to get service"),
        (b"<html>", "unavailable: localhost:"),
        (b"[1]", "unavailable: localhost:"),
        (b'{"state": "' + b"x" * 100_000, "unavailable: localhost:"),
    ],
)
async def test_whatever_else_it_answers_is_a_step_and_no_cause(
    diagnose: Any, google: Google, state: Any, says: str
) -> None:
    google.state = state
    diagnosis = await diagnose()
    assert diagnosis.cause is Cause.NONE
    assert "probably a deny policy" in diagnosis.text
    assert says in diagnosis.answers[-1].text
    assert TOKEN not in str(diagnosis)


async def test_without_a_token_it_is_not_known_and_a_missing_role_needs_no_question_more(
    diagnose: Any, google: Google, emulator: Emulator
) -> None:
    google.login = 400, {"error": "invalid_grant"}
    diagnosis = await diagnose()
    assert "invalid_grant" in diagnosis.answers[-1].text
    emulator.faults.add(EmulatorFault(kind="denied", permission=USE_TO_ENCRYPT))
    google.requests.clear()
    assert (await diagnose()).cause is Cause.ROLE_MISSING
    assert google.requests == []


async def test_an_emulator_has_no_state_to_ask_for(emulator: Emulator) -> None:
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    diagnosis = await key.explain_denial(USE_TO_ENCRYPT, timeout=5)
    await key.close()
    assert [answer.text for answer in diagnosis.answers] == [
        f"granted: cloudkms.cryptoKeyVersions.useToDecrypt, {USE_TO_ENCRYPT}, cloudkms.cryptoKeys.get",
        "protection level SOFTWARE, without an access justifications policy",
    ]
