from structlog.testing import capture_logs

from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    Operation,
    ProbeResult,
)
from services.exporter.results import ChangeLog
from shared.backend_contract import CryptoMode
from shared.kms.reason import Reason

UP = BackendState("backend", Health(CryptoMode.KMS, ready=True))
HALF = BackendState("backend", Health(CryptoMode.KMS, ready=True), problems=("metrics: answered with HTTP 500",))
DOWN = BackendState("backend", None, problems=("health check: refused",))


def result(failure: Failure | None = None, *, target: str = "ledger-kek") -> ProbeResult:
    return ProbeResult("backend", target, 0.0, (Call(Operation.ENCRYPT, 0.1, failure),), None)


def test_a_probe_is_reported_when_its_reason_changes_and_not_each_time() -> None:
    changes = ChangeLog()
    denied = Failure(Reason.PERMISSION_DENIED, "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied")
    with capture_logs() as logs:
        for failure in (None, denied, denied, Failure(Reason.TIMEOUT, "no answer within 5 s"), denied, None, None):
            changes.log_probe(result(failure))
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("probe failed", "permission_denied"),
        ("probe failed", "timeout"),
        ("probe failed", "permission_denied"),
        ("probe succeeded again", None),
    ]
    assert logs[0]["target"] == "ledger-kek"
    assert logs[0]["operation"] == "encrypt"
    assert logs[0]["error"] == denied.detail
    assert logs[0]["exc_info"] is None


def test_a_probe_that_does_not_end_in_time_is_reported_until_one_succeeds() -> None:
    changes = ChangeLog()
    with capture_logs() as logs:
        changes.log_probe(result())
        changes.log_expired_success("backend", "ledger-kek")
        changes.log_probe(result())
    assert [line["event"] for line in logs] == ["no probe finished in time", "probe succeeded again"]
    assert logs[0]["target"] == "ledger-kek"


def test_a_services_changing_text_is_no_change() -> None:
    changes = ChangeLog()
    with capture_logs() as logs:
        changes.log_probe(result(Failure(Reason.UNAVAILABLE, "connection 1 refused")))
        changes.log_probe(result(Failure(Reason.UNAVAILABLE, "connection 2 refused")))
    assert len(logs) == 1


def test_an_internal_failure_is_reported_once_with_its_trace_until_it_changes() -> None:
    changes = ChangeLog()
    first, second = ZeroDivisionError("a"), KeyError("b")
    with capture_logs() as logs:
        for error in (first, first, second):
            changes.log_probe(result(Failure(Reason.INTERNAL, repr(error), error)))
    assert [line["exc_info"] for line in logs] == [first, second]


def test_a_backend_is_reported_when_it_goes_and_when_it_is_back() -> None:
    changes = ChangeLog()
    with capture_logs() as logs:
        for state in (UP, DOWN, DOWN, HALF, UP, UP):
            changes.log_backend([state])
    assert [(line["event"], line["up"]) for line in logs] == [
        ("backend is down", False),
        ("backend can be read only in part", True),
        ("backend can be read again", True),
    ]
    assert logs[0]["error"] == "health check: refused"


def build_inspection(*problems: str, canary: Failure | None = None, wrong_aad: Failure | None = None) -> KeyInspection:
    return KeyInspection(
        "backend",
        "ledger-kek",
        0.0,
        None,
        {"cloudkms.cryptoKeys.get": not problems},
        (CanaryResult("3", Call(Operation.CANARY_DECRYPT, 0.1, canary)),),
        Call(Operation.DECRYPT, 0.1, wrong_aad),
        {},
        problems,
    )


def test_a_key_inspection_is_reported_when_it_finds_something_else() -> None:
    changes = ChangeLog()
    disabled = Failure(Reason.KEY_DISABLED, "ledger/cryptoKeyVersions/3 is not enabled")
    accepted = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt accepted another AAD than was encrypted with")
    with capture_logs() as logs:
        changes.log_inspection(build_inspection())
        changes.log_inspection(build_inspection("the key cannot be read: unavailable: connection 1 refused"))
        changes.log_inspection(build_inspection("the key cannot be read: unavailable: connection 2 refused"))
        changes.log_inspection(build_inspection(canary=disabled, wrong_aad=accepted))
        changes.log_inspection(build_inspection())
    assert [line.get("error") for line in logs] == [
        "the key cannot be read: unavailable: connection 1 refused; permission missing: cloudkms.cryptoKeys.get",
        f"what version 3 encrypted cannot be decrypted: key_disabled; {accepted.detail}",
        None,
    ]
    assert logs[-1]["event"] == "key inspection finds no problems any more"
