"""When the own certificate of a server ends, over the TLS that it serves; a renewed file counts at the next request."""

import json
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.credentials import read_certificate
from tests import processes
from tests.fork_server import forked
from tests.shared.certificates import LOCALHOST, Authority, web_yml

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
CONFIGURATIONS = {
    "exporter": f"targets: [{{name: a, service: a, key: {KEY}, endpoint: '127.0.0.1:1', insecure: true}}]",
    "relay": "database: sqlite:///relay.db\nauth: {bearer_token_file: token}\n"
    "channels: {log: {kind: log}}\ndefault_channels: [log]",
}
PREFIXES = {"exporter": "kms", "relay": "relay"}


@contextmanager
def started(*command: str) -> Iterator[str]:
    """A real process; gives where it listens."""
    with processes.running([*command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        yield next(address for line in process.stderr if (address := json.loads(line).get("address")))


@pytest.mark.parametrize("service", CONFIGURATIONS)
def test_a_server_says_when_the_certificate_ends_that_it_presents(service: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-secret-token-of-tests\n")
    (tmp_path / "token").chmod(0o600)
    file = tmp_path / f"{service}.yml"
    file.write_text(f"listen: 127.0.0.1:0\n{CONFIGURATIONS[service]}\n")
    authority = Authority(tmp_path)
    authority.sign("server", *LOCALHOST)
    trusted = ssl.create_default_context(cafile=authority.ca)
    web = str(web_yml(tmp_path))
    with started(*forked(f"services.{service}"), "--config", str(file), "--web.config.file", web) as address:
        for days in (1, 90):
            certificate, _ = authority.sign("server", *LOCALHOST, days=days)
            with urllib.request.urlopen(f"https://{address}/metrics", context=trusted, timeout=30) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
            presented = read_certificate(certificate)
            assert presented
            assert {
                sample.labels["credential"]: sample.value
                for family in families
                for sample in family.samples
                if sample.name == f"{PREFIXES[service]}_credential_expiry_timestamp_seconds"
            } == {f"certificate of the {service}": presented.ends_at}
