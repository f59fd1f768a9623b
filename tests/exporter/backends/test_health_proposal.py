"""What is proposed for the health documents that frameworks have: it reads the document as a person would."""

import json

import pytest
import yaml
from pydantic import TypeAdapter

from services.exporter.backends.health_documents import HealthMapping, HealthSetting
from services.exporter.backends.health_proposal import MAX_BYTES, propose_health
from services.exporter.model import Health
from shared.backend_contract import CryptoMode

SETTING: TypeAdapter[HealthMapping] = TypeAdapter(HealthSetting)
KMS, ENV = CryptoMode.KMS, CryptoMode.ENV
SPRING = {"status": "UP", "components": {"db": {"status": "UP"}, "diskSpace": {"status": "UP", "details": {"free": 1}}}}
KMS_COMPONENT = {"status": "UP", "details": {"mode": "HSM"}}
SPRING_KMS = {"status": "DOWN", "components": {"db": {"status": "DOWN"}, "kms": KMS_COMPONENT}}
ASP_NET = {"status": "Healthy", "totalDuration": "00:00:00.1", "entries": {"self": {"data": {}, "status": "Healthy"}}}
KEY_VAULT = {"status": "Degraded", "data": {"provider": "AzureKeyVault"}}
ASP_NET_KMS = {"status": "Degraded", "results": {"crypto": KEY_VAULT}}
ASP_NET_KMS_SETTING = (
    "{mode: /results/crypto/data/provider, ready: /results/crypto/status, "
    "values: {kms: [AzureKeyVault], ready: [Healthy, Degraded]}}"
)


@pytest.mark.parametrize(
    ("document", "found", "setting", "health"),
    [
        (SPRING, '/status = "UP"', "{mode: null, ready: /status, values: {ready: [UP]}}", Health(None, ready=True)),
        (
            SPRING_KMS,
            '/components/kms/details/mode = "HSM", /components/kms/status = "UP"',
            "{mode: /components/kms/details/mode, ready: /components/kms/status, values: {kms: [HSM], ready: [UP]}}",
            Health(KMS, ready=True),
        ),
        (
            {"status": "OUT_OF_SERVICE"},
            None,
            "{mode: null, ready: /status, values: {ready: [UP]}}",
            Health(None, ready=False),
        ),
        (
            ASP_NET,
            '/status = "Healthy"',
            "{mode: null, ready: /status, values: {ready: [Healthy, Degraded]}}",
            Health(None, ready=True),
        ),
        (
            ASP_NET_KMS,
            '/results/crypto/data/provider = "AzureKeyVault", /results/crypto/status = "Degraded"',
            ASP_NET_KMS_SETTING,
            Health(KMS, ready=True),
        ),
        ({"status": "pass", "version": "1"}, '/status = "pass"', None, Health(None, ready=True)),
        ({"status": "fail"}, '/status = "fail"', None, Health(None, ready=False)),
        ({"status": "OK", "component": {"name": "ledger"}}, '/status = "OK"', None, Health(None, ready=True)),
        ({"status": "Unavailable", "failures": {"kms": "timeout"}}, None, None, Health(None, ready=False)),
        ({"db": "OK", "kms/eu": "OK"}, '/kms~1eu = "OK"', None, Health(None, ready=True)),
        (
            {"status": "up", "details": {"kms": {"status": "down"}}},
            '/details/kms/status = "down"',
            None,
            Health(None, ready=False),
        ),
        (
            {"state": {"crypto": "HSM", "ready": "true"}},
            '/state/crypto = "HSM", /state/ready = "true"',
            "{mode: /state/crypto, ready: /state/ready, values: {kms: [HSM]}}",
            Health(KMS, ready=True),
        ),
        (
            {"crypto_mode": "kms", "crypto_ready": True},
            '/crypto_mode = "kms", /crypto_ready = true',
            "",
            Health(KMS, ready=True),
        ),
        ({"crypto_mode": "LOCAL", "crypto_ready": 0}, None, "{values: {env: [LOCAL]}}", Health(ENV, ready=False)),
        ({"checks": [{"name": "kms", "ok": True}]}, "/checks/0/ok = true", None, Health(None, ready=True)),
        ({"mode": "kms"}, '/mode = "kms"', "{mode: /mode, ready: null}", Health(KMS, ready=True)),
    ],
)
def test_what_is_proposed_reads_the_document(
    document: object, found: str | None, setting: str | None, health: Health
) -> None:
    body = json.dumps(document).encode()
    proposal = propose_health(body)
    assert found in {None, proposal.found}, proposal
    assert setting in {None, proposal.setting}, proposal
    assert SETTING.validate_python(yaml.safe_load(proposal.setting or "{}")).read(200, body) == health


@pytest.mark.parametrize(
    "body",
    [
        b"Healthy",
        b"ok",
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"name": "ledger", "uptime": 12, "local": "time"}',
        b'{"a\\"b": "UP", "c\xe2\x80\xa8d": "UP", "e": "UP\xc2\x85"}',
        b"[" * 100_000,
        b'{"status": "UP", "x": "' + b"x" * MAX_BYTES + b'"}',
    ],
)
def test_of_what_says_nothing_that_is_known_the_status_code_counts(body: bytes) -> None:
    assert propose_health(body) == ("", "status")


def test_a_pointer_is_quoted_where_yaml_needs_it() -> None:
    body = json.dumps({"kms: {a}, # b": {"status": "UP"}}).encode()
    proposal = propose_health(body)
    assert yaml.safe_load(proposal.setting)["ready"] == "/kms: {a}, # b/status"
    assert SETTING.validate_python(yaml.safe_load(proposal.setting)).read(200, body) == Health(None, ready=True)
