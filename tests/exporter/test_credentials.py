"""When the exporter's credentials end, as Prometheus reads it: of real certificates and tokens, across reloads."""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from services.exporter.app import run_exporter
from services.exporter.backend_reads import read_backends
from services.exporter.config import ExporterSettings
from services.exporter.doctor import open_checks
from shared.check import run_check
from shared.credentials import Validity
from shared.http.server import serve
from shared.http.web_config import WebConfigFile
from shared.kms.port import KmsError
from shared.process.server import ServerRunner
from tests.bao import Bao
from tests.exporter.backends.test_credentials import answer, serving
from tests.exporter.running_exporter import FREE, Scrape
from tests.shared.certificates import LOCALHOST, Authority, web_yml
from tests.shared.test_credentials import jwt

TIMEOUT = 30.0
EXPIRY, LIFETIME = "kms_credential_expiry_timestamp_seconds", "kms_credential_lifetime_seconds"
BACKEND = "certificate of the backend ledger"
CLIENT = "client certificate for the backend ledger"
SERVER, CLIENTS = "certificate of the exporter", "client certificate authority of the exporter"


def end_of(file: Path) -> float:
    return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp()


def settings(url: str, **backend: Any) -> ExporterSettings:
    backends = [{"service": "ledger", "health_url": f"{url}/healthz", **backend}]
    return ExporterSettings.model_validate(
        {"listen": str(FREE), "probe": {"interval": "1s", "timeout": "1s"}, "backends": backends}
    )


async def ends(scrape: Scrape) -> dict[str, float]:
    values = await scrape.values()
    found = {name.removeprefix(f"{EXPIRY} "): value for name, value in values.items() if name.startswith(EXPIRY)}
    for name, end in found.items():
        assert end - values[f"{LIFETIME} {name}"] == pytest.approx(time.time() - 86400, abs=60), "it began a day ago"
    return found


def read_all(watched: ExporterSettings) -> dict[str, Validity | None]:
    return {credential: read() for credential, read in watched.list_credentials().items()}


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - another program's state
            await asyncio.sleep(0.02)


async def test_each_certificate_has_its_end_until_it_is_renewed_or_gone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("backend", *LOCALHOST)
    client, client_key = authority.sign("client")
    authority.sign("server", *LOCALHOST)
    web = WebConfigFile(web_yml(tmp_path, client_auth_type="VerifyClientCertIfGiven", client_ca_file=str(authority.ca)))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    pair = {"ca_file": str(authority.ca), "cert_file": str(client), "key_file": str(client_key)}
    async with serving(answer, tls) as url, serving(answer) as plain:
        exporter = run_exporter(
            settings(url, tls_config=pair),
            read_backends=read_backends,
            get_server_credentials=ServerRunner(settings(url), web_config_file=web).get_credentials,
        )
        async with exporter as app, serve(app, FREE) as address, aiohttp.ClientSession() as session:
            scrape = Scrape(address, session)

            def expected() -> dict[str, float]:
                web.get_state()  # as each request does behind web.yml
                files = {SERVER: tmp_path / "server.pem", CLIENTS: authority.ca, BACKEND: certificate, CLIENT: client}
                return {name: end_of(file) for name, file in files.items()}

            async def is_complete() -> bool:
                return await ends(scrape) == expected()

            await wait_until(is_complete)
            before = expected()
            await wait_until(lambda: _shows(scrape, "Certificate ends"))
            authority.sign("server", *LOCALHOST, days=90)
            authority.sign("client", days=90)
            tls.load_cert_chain(*authority.sign("backend", *LOCALHOST, days=90))
            await wait_until(is_complete)
            assert [name for name, value in expected().items() if value == before[name]] == [CLIENTS]

            client.write_text("no certificate")
            tls.load_cert_chain(*Authority(tmp_path, "stranger").sign("other", *LOCALHOST))
            await wait_until(lambda: _equals(scrape, {SERVER, CLIENTS}))
            authority.sign("client")
            await app.state.apply(settings(plain))
            assert set(await ends(scrape)) == {SERVER, CLIENTS}
            assert not await _shows(scrape, "Certificate ends")


async def _shows(scrape: Scrape, text: str) -> bool:
    return text in await scrape.page()


async def _equals(scrape: Scrape, names: set[str]) -> bool:
    return set(await ends(scrape)) == names


@pytest.mark.parametrize("wrapped", [False, True])
async def test_the_token_that_an_external_account_exchanges_has_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, wrapped: bool
) -> None:
    account, token = tmp_path / "account.json", tmp_path / "token"
    form = {"type": "json", "subject_token_field_name": "id_token"}
    source = {"file": str(token), **({"format": form} if wrapped else {})}
    account.write_text(json.dumps({"type": "external_account", "credential_source": source}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    key = "projects/demo/locations/global/keyRings/app/cryptoKeys/{}"
    targets = [{"name": each, "key": key.format(each)} for each in ("one", "two")]
    watched = ExporterSettings.model_validate({"listen": str(FREE), "service": "ledger", "targets": targets})

    def write(text: str) -> None:
        token.write_text(json.dumps({"id_token": text}) if wrapped else text)

    now = time.time()
    write(jwt({"iat": now, "exp": now + 3600}))
    assert read_all(watched) == {"projected token": (now + 3600, now)}
    async with open_checks(watched) as checks:
        (result,) = [await run_check(check) for check in checks if check.name == "projected token"]
    assert result.detail.startswith("ends in 1.0 hours, on ")
    write(jwt({"iat": now + 1, "exp": now + 3601}))
    assert read_all(watched) == {"projected token": (now + 3601, now + 1)}
    for broken in (
        "{}",
        "[]",
        "no JSON",
        '{"credential_source": {"file": 1}}',
        '{"credential_source": {"url": "http"}}',
    ):
        account.write_text(broken)
        assert read_all(watched) == {"projected token": None}
    plain = watched.model_copy(
        update={
            "targets": tuple(
                each.model_copy(update={"kms": each.kms.model_copy(update={"insecure": True})})
                for each in watched.targets
            )
        }
    )
    assert read_all(plain) == {}


async def test_of_several_tokens_of_one_server_the_first_to_end_counts(shared_bao: Bao, tmp_path: Path) -> None:
    """One that is refused, of the last target, hides none."""
    mounted = shared_bao.mount()
    tokens = [mounted.create_token(ttl=ttl) for ttl in ("2h", "1h")]
    targets = []
    for n, token in enumerate([*tokens, "refused"]):
        folder = tmp_path / str(n)
        folder.mkdir()
        targets.append({"name": f"key-{n}", **mounted.build_settings(folder, token=token)})
    watched = ExporterSettings.model_validate({"listen": str(FREE), "service": "ledger", "targets": targets})
    for target in watched.targets:
        key = target.kms.connect()
        with suppress(KmsError):
            await key.encrypt(b"", b"", timeout=TIMEOUT)
        await key.close()
    end = read_all(watched)["Transit token"]
    assert end
    assert end.ends_at - time.time() == pytest.approx(3600, abs=60)
