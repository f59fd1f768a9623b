"""The details of a status → the cause; whatever they hold, the answer is a KmsError."""

from collections.abc import Mapping

import grpc
import pytest
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, Help, PreconditionFailure, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kms.gcp.errors import parse_auth_error, parse_status
from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason

DENIED, PRECONDITION = "PERMISSION_DENIED", "FAILED_PRECONDITION"


def pack(status: str, *details: Message | Any, message: str = "said") -> bytes:
    sent = Status(code=grpc.StatusCode[status].value[0], message=message)
    for detail in details:
        if isinstance(detail, Any):
            sent.details.append(detail)
        else:
            sent.details.add().Pack(detail)
    return bytes(sent.SerializeToString())


def info(reason: str, domain: str = "googleapis.com", **metadata: str) -> Message:
    sent: Message = ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    return sent


def violated(*types: str, description: str = "") -> Message:
    violations = [PreconditionFailure.Violation(type=each, description=description) for each in types]
    sent: Message = PreconditionFailure(violations=violations)
    return sent


@pytest.mark.parametrize(
    ("status", "detail", "cause", "values"),
    [
        (
            DENIED,
            info("IAM_PERMISSION_DENIED", "cloudkms.googleapis.com", permission="cloudkms.cryptoKeys.get"),
            Cause.ROLE_MISSING,
            {"permission": "cloudkms.cryptoKeys.get"},
        ),
        (DENIED, info("SECURITY_POLICY_VIOLATED", uid="aBc"), Cause.PERIMETER, {"troubleshooter_id": "aBc"}),
        (DENIED, violated("VPC_SERVICE_CONTROLS", description="x-1"), Cause.PERIMETER, {"troubleshooter_id": "x-1"}),
        (
            DENIED,
            info("SERVICE_DISABLED", activationUrl="https://x"),
            Cause.API_DISABLED,
            {"activation_url": "https://x"},
        ),
        (DENIED, info("BILLING_DISABLED", consumer="projects/1"), Cause.BILLING_DISABLED, {"consumer": "projects/1"}),
        (DENIED, info("CONSUMER_INVALID"), Cause.PROJECT_UNUSABLE, {}),
        (DENIED, info("CONSUMER_SUSPENDED"), Cause.PROJECT_UNUSABLE, {}),
        (DENIED, info("USER_PROJECT_DENIED"), Cause.QUOTA_PROJECT, {}),
        (DENIED, info("TLS_ORG_POLICY_VIOLATED", policyName="tls"), Cause.ORG_POLICY, {"constraint": "tls"}),
        (
            DENIED,
            info("ENDPOINT_USAGE_RESTRICTION_VIOLATED", "googleapis.com/policies/endpointUsageRestriction"),
            Cause.ORG_POLICY,
            {},
        ),
        (DENIED, info("ORG_RESTRICTION_VIOLATION"), Cause.ORG_POLICY, {}),
        (DENIED, info("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), Cause.SCOPE_MISSING, {}),
        ("UNAUTHENTICATED", info("ACCESS_TOKEN_EXPIRED"), Cause.TOKEN_EXPIRED, {}),
        ("UNAUTHENTICATED", info("ACCOUNT_STATE_INVALID"), Cause.ACCOUNT_DISABLED, {}),
        ("UNAUTHENTICATED", info("JWT_TOKEN_INVALID"), Cause.CREDENTIALS_INVALID, {}),
        ("INVALID_ARGUMENT", info("API_KEY_HTTP_REFERRER_BLOCKED"), Cause.CREDENTIALS_INVALID, {}),
        (
            "RESOURCE_EXHAUSTED",
            info("RATE_LIMIT_EXCEEDED", quota_metric="hsm_usage", consumer="projects/1"),
            Cause.RATE_LIMIT,
            {"quota_metric": "hsm_usage", "consumer": "projects/1"},
        ),
        (
            "RESOURCE_EXHAUSTED",
            QuotaFailure(violations=[{"subject": "projects/1", "quota_metric": "hsm_usage"}]),
            Cause.RATE_LIMIT,
            {"quota_metric": "hsm_usage", "consumer": "projects/1"},
        ),
        (PRECONDITION, violated("KEY_ENABLED", "EXTERNAL_PERMISSION_DENIED"), Cause.EKM_DENIED, {}),
        (PRECONDITION, violated("KEY_ENABLED", "UNREACHABLE_NETWORK"), Cause.EKM_UNREACHABLE, {}),
        (PRECONDITION, violated("KEY_ENABLED", "EXTERNAL_KEY_URI_INVALID"), Cause.EKM_NOT_FOUND, {}),
        (PRECONDITION, violated("KEY_ENABLED", "TLS_CERT"), Cause.EKM_ERROR, {}),
        (DENIED, info("A_REASON_OF_THE_FUTURE"), Cause.NONE, {}),
        (DENIED, info("IAM_PERMISSION_DENIED", "example.org"), Cause.NONE, {}),
        (DENIED, Help(), Cause.NONE, {}),
    ],
)
def test_each_detail_has_its_cause_and_what_it_names(
    status: str, detail: Message, cause: Cause, values: Mapping[str, str]
) -> None:
    failure = parse_status(status, "said", pack(status, detail))
    assert (failure.cause, failure.values) == (cause, values)
    if cause:
        assert failure.reason is cause.reason
    assert failure.is_silent == (not cause and "FUTURE" not in str(detail))
    assert all(value in failure.detail for value in values.values())


def test_a_denial_that_says_no_more_is_a_missing_role_and_the_text_names_permission_and_troubleshooter() -> None:
    text = "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource 'k' (or it may not exist)."
    failure = parse_status(DENIED, text)
    assert (failure.cause, failure.values["permission"]) == (Cause.ROLE_MISSING, text.split("'")[1])
    assert failure.is_silent
    text = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: aB-1_c"
    assert parse_status(DENIED, text, pack(DENIED, info("SECURITY_POLICY_VIOLATED"))).values == {
        "troubleshooter_id": "aB-1_c"
    }


def test_a_service_that_asks_for_a_pause_is_heard_and_never_for_a_time_before_now() -> None:
    for delay, seconds in ({"seconds": 7, "nanos": 500_000_000}, 7.5), ({"seconds": -7}, 0.0), (None, None):
        details = [RetryInfo(retry_delay=delay)] if delay else []
        assert parse_status("UNAVAILABLE", "said", pack("UNAVAILABLE", *details)).retry_after == seconds


def test_a_status_without_details_is_a_denial_that_says_no_more_unless_its_text_names_a_perimeter() -> None:
    assert parse_status(DENIED, "said", pack(DENIED)).cause is Cause.ROLE_MISSING
    assert parse_status(DENIED, "… vpcServiceControlsUniqueIdentifier: aB-1_c").cause is Cause.PERIMETER


def test_a_missing_role_is_not_told_where_something_else_refuses_too() -> None:
    blob = pack(DENIED, info("IAM_PERMISSION_DENIED"), info("SERVICE_DISABLED"))
    assert parse_status(DENIED, "said", blob).cause is Cause.API_DISABLED


def test_the_state_of_a_version_is_a_violation_too() -> None:
    for violation, reason in (("KEY_DISABLED", Reason.KEY_DISABLED), ("KEY_DESTROYED", Reason.KEY_DESTROYED)):
        assert parse_status(PRECONDITION, "said", pack(PRECONDITION, violated(violation))).reason is reason
    of_the_future = pack(PRECONDITION, violated("KEY_ENABLED", "AN_ERROR_OF_THE_FUTURE"))
    assert parse_status(PRECONDITION, "said", of_the_future).reason is Reason.UNAVAILABLE


BROKEN = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("status", "message", "blob"),
    [
        (DENIED, "said", b"\xff\xff\xff"),
        (DENIED, "said", pack("NOT_FOUND", info("IAM_PERMISSION_DENIED"))),
        (DENIED, "said", pack(DENIED, BROKEN)),
        ("RESOURCE_EXHAUSTED", "received metadata size exceeds hard limit (value length 20,000 vs. 16,384)", None),
    ],
)
def test_details_that_cannot_be_read_or_contradict_are_a_malformed_answer(
    status: str, message: str, blob: bytes | None
) -> None:
    failure = parse_status(status, message, blob)
    assert (failure.reason, failure.cause) == (Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER)
    assert message in failure.detail


def test_what_a_gateway_answers_by_http_is_not_said_by_kms() -> None:
    failure = parse_status(DENIED, "Received http2 header with status: 403")
    assert (failure.reason, failure.cause, failure.is_silent) == (Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER, False)


def test_another_text_or_one_of_several_details_that_cannot_be_read_spoils_nothing() -> None:
    blob = pack(DENIED, BROKEN, info("BILLING_DISABLED"), message="another text")
    assert parse_status(DENIED, "said", blob).cause is Cause.BILLING_DISABLED


@settings(max_examples=50)
@given(blob=st.binary(max_size=200), message=st.text(max_size=3_000), value=st.text(max_size=1_000))
def test_whatever_the_details_hold_is_a_bounded_answer(blob: bytes, message: str, value: str) -> None:
    for sent in (blob, pack(DENIED, info(value[:60], uid=value.encode("utf-8", "replace").decode()))):
        failure = parse_status(DENIED, message, sent)
        assert isinstance(failure, KmsError)
        assert len(failure.detail) < 3_000


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RefreshError("invalid_grant: Invalid grant: account not found"), Cause.ACCOUNT_DISABLED),  # type: ignore[no-untyped-call]
        (RefreshError("('Robot is disabled')"), Cause.ACCOUNT_DISABLED),  # type: ignore[no-untyped-call]
        (RefreshError("Service account projects/-/serviceAccounts/a@b is disabled."), Cause.ACCOUNT_DISABLED),  # type: ignore[no-untyped-call]
        (
            # https://github.com/google/kctf/issues/194
            RefreshError(  # type: ignore[no-untyped-call]
                "IAM returned 403 Forbidden: IAM Service Account Credentials API has not been used in project 1 before "
                "or it is disabled."
            ),
            Cause.NONE,
        ),
        (RefreshError("invalid_grant: Invalid JWT Signature."), Cause.CREDENTIALS_INVALID),  # type: ignore[no-untyped-call]
        (RefreshError("invalid_scope: Invalid OAuth scope"), Cause.SCOPE_MISSING),  # type: ignore[no-untyped-call]
        (DefaultCredentialsError("File x was not found."), Cause.CREDENTIALS_INVALID),  # type: ignore[no-untyped-call]
        (GoogleAuthError("connection refused"), Cause.NONE),  # type: ignore[no-untyped-call]
    ],
)
def test_a_token_server_and_a_file_have_their_causes_too(error: GoogleAuthError, cause: Cause) -> None:
    failure = parse_auth_error(error)
    assert (failure.reason, failure.cause) == (Reason.UNAUTHENTICATED, cause)
    of_grpc = parse_status("UNAVAILABLE", f"Getting metadata from plugin failed with error: {error}")
    assert of_grpc.cause is (Cause.NONE if isinstance(error, DefaultCredentialsError) else cause)


@pytest.mark.parametrize("value", ["\x1b[2J", "a\nb", "\u202eab", "漢字"])
def test_a_value_that_google_would_not_send_is_left_out(value: str) -> None:
    failure = parse_status(
        DENIED, "said", pack(DENIED, info("SECURITY_POLICY_VIOLATED", uid=value, consumer="projects/1"))
    )
    assert (failure.cause, failure.values) == (Cause.PERIMETER, {"consumer": "projects/1"})
