import grpc
import pytest
from google.cloud.kms_v1 import CryptoKeyVersion

from shared.kms.gcp.errors import parse_status
from shared.kms.gcp.profile import VERSION_STATES
from shared.kms.reason import Reason, Scope


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        ("CANCELLED", "", Reason.UNAVAILABLE),
        ("UNKNOWN", "", Reason.UNAVAILABLE),
        ("INVALID_ARGUMENT", "Decryption failed", Reason.INVALID_REQUEST),
        ("DEADLINE_EXCEEDED", "", Reason.TIMEOUT),
        ("NOT_FOUND", "CryptoKey … not found.", Reason.KEY_NOT_FOUND),
        ("NOT_FOUND", "The request concerns location 'us' but was sent to location 'global'. …", Reason.UNAVAILABLE),
        ("ALREADY_EXISTS", "", Reason.UNAVAILABLE),
        ("PERMISSION_DENIED", "", Reason.PERMISSION_DENIED),
        ("UNAUTHENTICATED", "", Reason.UNAUTHENTICATED),
        ("RESOURCE_EXHAUSTED", "Quota exceeded", Reason.QUOTA_EXHAUSTED),
        ("FAILED_PRECONDITION", "… is not enabled, current state is: DISABLED.", Reason.KEY_DISABLED),
        ("FAILED_PRECONDITION", "… is not enabled, current state is: DESTROYED.", Reason.KEY_DESTROYED),
        ("FAILED_PRECONDITION", "… is not enabled, current state is: DESTROY_SCHEDULED.", Reason.KEY_DESTROYED),
        ("FAILED_PRECONDITION", "DESTROY/1 is not enabled, current state is: DISABLED.", Reason.KEY_DISABLED),
        ("FAILED_PRECONDITION", "… is not enabled, current state is: PENDING_GENERATION.", Reason.KEY_DISABLED),
        ("FAILED_PRECONDITION", "The external key manager of DISABLED/1 cannot be reached.", Reason.UNAVAILABLE),
        ("FAILED_PRECONDITION", "", Reason.UNAVAILABLE),
        ("ABORTED", "", Reason.UNAVAILABLE),
        ("OUT_OF_RANGE", "", Reason.UNAVAILABLE),
        ("UNIMPLEMENTED", "", Reason.UNAVAILABLE),
        ("INTERNAL", "", Reason.UNAVAILABLE),
        ("UNAVAILABLE", "", Reason.UNAVAILABLE),
        ("UNAVAILABLE", "Getting metadata from plugin failed with error: …", Reason.UNAUTHENTICATED),
        ("DATA_LOSS", "", Reason.UNAVAILABLE),
        ("A_STATUS_OF_THE_FUTURE", "", Reason.UNAVAILABLE),
    ],
)
def test_each_status_has_its_reason(status: str, message: str, reason: Reason) -> None:
    assert parse_status(status, message).reason is reason


def test_the_table_above_leaves_no_status_out() -> None:
    [table] = [mark for mark in test_each_status_has_its_reason.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined] # set by pytest
    assert set(grpc.StatusCode.__members__) - {"OK"} <= {row[0] for row in table.args[1]}


def test_the_set_is_the_one_that_dashboards_rely_on() -> None:
    assert [str(reason) for reason in Reason] == [
        "timeout",
        "unavailable",
        "permission_denied",
        "unauthenticated",
        "quota_exhausted",
        "key_not_found",
        "key_disabled",
        "key_destroyed",
        "crc_mismatch",
        "plaintext_mismatch",
        "invalid_request",
        "internal",
    ]


def test_every_state_of_googles_client_has_a_meaning() -> None:
    states = set(CryptoKeyVersion.CryptoKeyVersionState.__members__) - {"CRYPTO_KEY_VERSION_STATE_UNSPECIFIED"}
    assert set(VERSION_STATES) == states


def test_what_passes_by_itself_and_what_concerns_data() -> None:
    passing = {Reason.TIMEOUT, Reason.UNAVAILABLE, Reason.QUOTA_EXHAUSTED, Reason.CRC_MISMATCH}
    assert {reason for reason in Reason if reason.transient} == passing
    assert {reason for reason in Reason if reason.scope is Scope.SERVICE} == {Reason.TIMEOUT, Reason.UNAVAILABLE}
    intact = {Reason.PERMISSION_DENIED, Reason.UNAUTHENTICATED, Reason.INTERNAL, *passing} - {Reason.CRC_MISMATCH}
    assert {reason for reason in Reason if not reason.concerns_data} == intact
