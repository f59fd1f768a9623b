"""Health documents of other services, byte for byte: which mode, and whether it is ready."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from services.exporter.backends.health_documents import HealthMapping, HealthSetting, UnreadableError
from services.exporter.model import Health
from shared.backend_contract import CryptoMode

SETTING: TypeAdapter[HealthMapping] = TypeAdapter(HealthSetting)
NESTED = {
    "mode": "/crypto/mode",
    "ready": "/crypto/ready",
    "values": {"kms": ["KMS", "hsm", True], "env": ["local", False]},
}


def read(setting: object, document: object, status: int = 200) -> Health:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return SETTING.validate_python(setting).read(status, body)


def crypto(mode: object, ready: object = True) -> dict[str, Any]:
    return {"crypto": {"mode": mode, "ready": ready}, "padding": [None]}


@pytest.mark.parametrize("value", ["KMS", "kms", "Hsm", " hsm ", True, "TRUE", 1, "1", 1.0])
def test_each_value_of_kms_is_kms_whatever_its_case(value: object) -> None:
    assert read(NESTED, crypto(value)) == Health(CryptoMode.KMS, ready=True)


@pytest.mark.parametrize("value", ["LOCAL", "local", False, "false", 0])
def test_each_value_of_env_is_env(value: object) -> None:
    assert read(NESTED, crypto(value)) == Health(CryptoMode.ENV, ready=True)


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0"])
@pytest.mark.parametrize("configured", [2, 2.0, "2"])
def test_a_number_is_the_same_however_it_is_written(configured: object, value: object) -> None:
    setting = {**NESTED, "values": {"kms": [configured]}}
    assert read(setting, crypto(value)) == Health(CryptoMode.KMS, ready=True)


@pytest.mark.parametrize("ready", ["yes", "", 2, -1, None, [True], "UP"])
def test_what_is_neither_true_nor_false_cannot_be_read(ready: object) -> None:
    with pytest.raises(UnreadableError, match=r"^/crypto/ready: expected "):
        read(NESTED, crypto("kms", ready))


@pytest.mark.parametrize(
    ("value", "ready"), [("UP", True), ("up", True), (" Up ", True), ("DOWN", False), (True, False)]
)
def test_only_the_configured_values_of_readiness_are_ready(value: object, ready: bool) -> None:
    mapping = {"mode": None, "ready": "/status", "values": {"ready": ["UP", "OK"]}}
    assert read(mapping, {"status": value}, 503) == Health(None, ready=ready)
    with pytest.raises(UnreadableError, match=r"^/status: "):
        read(mapping, {"status": None})


@pytest.mark.parametrize("value", ["env", "hunter2", "", 2])
def test_an_unknown_value_is_no_mode_and_the_rest_counts(value: object) -> None:
    health = read(NESTED, crypto(value, "false"))
    assert (health.mode, health.ready) == (None, False)
    assert health.mode_problem == "/crypto/mode: expected 'KMS' or 'hsm' or 'true' or 'local' or 'false'"


@pytest.mark.parametrize("document", [{}, {"crypto": None}, {"crypto": {"ready": True}}, crypto(None), crypto({})])
def test_a_document_without_its_mode_cannot_be_read(document: object) -> None:
    with pytest.raises(UnreadableError, match="/crypto/"):
        read(NESTED, document)


@pytest.mark.parametrize(("status", "ready"), [(200, True), (204, True), (299, True), (500, False), (503, False)])
def test_where_only_the_status_code_counts_there_is_no_mode_and_no_document(status: int, ready: bool) -> None:
    assert read("status", b"\xff", status) == Health(None, ready)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("Status", "Input should be a valid dictionary"),
        ({"mode": "crypto.mode"}, "expected a JSON Pointer such as /crypto/mode"),
        ({"values": {"kms": []}}, "at least 1 item"),
        ({"values": {"kms": [""]}}, "expected a word, a number, or true or false"),
        ({"values": {"kms": [None]}}, "expected a word, a number, or true or false"),
        ({"values": {"kms": ["ENV"]}}, "expected words that stand for one mode only"),
        ({"values": {"kms": [1], "env": ["true"]}}, "expected words that stand for one mode only"),
        ({"values": {"hsm": ["x"]}}, "Extra inputs"),
        ({"ready": None, "values": {"ready": ["UP"]}}, "expected `ready` as a JSON Pointer"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(setting: object, error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        SETTING.validate_python(setting)
