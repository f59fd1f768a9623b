"""When the certificates of mail servers and of the OpenID provider end: as Prometheus reads it, and for doctor."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from services.relay.app import run_relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.doctor import open_checks
from shared.check import run_check
from shared.config.settings import load_settings
from shared.credentials import Validity, read_certificate
from tests.relay.channels.email.mail_server import StartServer
from tests.shared.certificates import LOCALHOST, Authority

TIMEOUT = 30.0
HOSTS = ("localhost", "127.0.0.1")


def settings(folder: Path, issuer: str, channels: Mapping[str, Mapping[str, Any]]) -> RelaySettings:
    for name in ("token", "secret"):
        (folder / name).write_text("a-secret-token-of-tests\n")
        (folder / name).chmod(0o600)
    mail = {"kind": "email", "from": "alerts@example.org", "to": ["ops@example.org"], "ca_file": "ca.pem"}
    oidc = {"issuer": issuer, "client_id": "relay", "client_secret_file": "secret", "roles": {"sre": "admin"}}
    document = {
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": "token", "public_url": "https://relay", "oidc": {**oidc, "ca_file": "ca.pem"}},
        "channels": {name: {**mail, **channel} for name, channel in channels.items()},
        "default_channels": list(channels),
        "environment": "demo",
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    return load_settings(RelaySettings, folder / "relay.yml")


async def read_metrics(app: Starlette) -> dict[str, dict[str, float]]:
    answer = await asyncio.to_thread(TestClient(app).get, "/metrics")
    families = text_string_to_metric_families(answer.text)
    return {
        family.name: {sample.labels["credential"]: sample.value for sample in family.samples}
        for family in families
        if family.name.startswith("relay_credential")
    }


async def expect(app: Starlette, ends: Mapping[str, Validity | None]) -> None:
    """Waits, with a bound, until the relay shows these."""
    known = {credential: validity for credential, validity in ends.items() if validity}
    expected = {
        "relay_credential_expiry_timestamp_seconds": {name: each.ends_at for name, each in known.items()},
        "relay_credential_lifetime_seconds": {name: each.ends_at - each.begins_at for name, each in known.items()},
    }
    async with asyncio.timeout(TIMEOUT):
        while await read_metrics(app) != expected:  # noqa: ASYNC110 - another program's state
            await asyncio.sleep(0.02)


async def test_the_end_of_each_servers_certificate_is_shown_and_a_reload_changes_it(
    mail_server: StartServer, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    contexts, ends = [], []
    for name, days in (("starttls", 30), ("implicit", 60), ("provider", 90)):
        pair = authority.sign(name, *LOCALHOST, days=days)
        contexts.append(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        contexts[-1].load_cert_chain(*pair)
        ends.append(read_certificate(pair[0]))
    one = (await mail_server(starttls=contexts[0])).address
    other = (await mail_server(implicit=contexts[1])).address
    plain = (await mail_server()).address
    untrusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "strange").mkdir()
    untrusted.load_cert_chain(*Authority(tmp_path / "strange").sign("server", *LOCALHOST))
    stranger = (await mail_server(implicit=untrusted)).address
    provider_server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=contexts[2])
    issuer = f"https://127.0.0.1:{provider_server.sockets[0].getsockname()[1]}"
    async with provider_server:
        channels = {
            "one": {"host": "localhost", "port": one.port},
            "again": {"host": "localhost", "port": one.port},
            "untrusted": {"host": "localhost", "port": stranger.port, "tls": "implicit"},
            "other": {"host": "127.0.0.1", "port": other.port, "tls": "implicit"},
            "plain": {"host": "127.0.0.1", "port": plain.port, "tls": "none"},
        }
        configured = settings(tmp_path, issuer, channels)
        provider = {"certificate of the OpenID provider": ends[2]}
        server = {"certificate of the relay": Validity(2000.0, 1000.0)}
        relay = run_relay(configured, open_sender=open_local_sender, get_server_credentials=lambda: server)
        async with relay as app:
            expected = {f"certificate of the mail server {host}": end for host, end in zip(HOSTS, ends, strict=False)}
            await expect(app, server | provider | expected)
            changed = {"plain": channels["plain"], "other": {**channels["other"], "port": stranger.port}}
            await app.state.apply(settings(tmp_path, issuer, changed))
            await expect(app, server | provider)
        async with open_checks(configured) as checks:
            wanted = [check for check in checks if check.name.endswith((" certificate", " connection"))]
            details = {check.name: (await run_check(check)).detail for check in wanted}
    assert " its certificate ends in 30 days, on " in details["channels.one connection"]
    assert " its certificate ends in 60 days, on " in details["channels.other connection"]
    assert "certificate ends" not in details["channels.plain connection"]
    assert " its certificate ends in 90 days, on " in details["auth.oidc certificate"]
