"""What Google's own client shows of each cause that the emulator answers with."""

from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from google.iam.v1 import iam_policy_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from ops.kms_emulator.causes import CAUSES
from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from tests.tracked_files import ROOT

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}
USE_TO_ENCRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt"


async def refuse(client: KeyManagementServiceAsyncClient, emulator: Emulator, **fault: Any) -> Any:
    """The error of the next Encrypt, with this fault."""
    emulator.faults.add(EmulatorFault(kind="cause", count=1, **fault))
    with pytest.raises(exceptions.GoogleAPICallError) as refused:
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
    return refused.value


ANSWERS = """
role_missing PERMISSION_DENIED IAM_PERMISSION_DENIED permission
role_missing/no_details PERMISSION_DENIED
perimeter PERMISSION_DENIED SECURITY_POLICY_VIOLATED service consumer uid
perimeter/violation_only PERMISSION_DENIED
api_disabled PERMISSION_DENIED SERVICE_DISABLED service consumer serviceTitle activationUrl containerInfo
billing_disabled PERMISSION_DENIED BILLING_DISABLED service consumer
project_unusable PERMISSION_DENIED CONSUMER_INVALID service consumer containerInfo
project_unusable/suspended PERMISSION_DENIED CONSUMER_SUSPENDED service consumer
project_unusable/gcp_suspended PERMISSION_DENIED GCP_SUSPENDED service consumer
project_unusable/resource_invalid PERMISSION_DENIED RESOURCE_PROJECT_INVALID service consumer
quota_project PERMISSION_DENIED USER_PROJECT_DENIED service consumer containerInfo consoleUrl
org_policy PERMISSION_DENIED RESOURCE_USAGE_RESTRICTION_VIOLATED service consumer
org_policy/restriction PERMISSION_DENIED ORG_RESTRICTION_VIOLATION
org_policy/location PERMISSION_DENIED LOCATION_ORG_POLICY_VIOLATED resource location
org_policy/tls_version PERMISSION_DENIED TLS_ORG_POLICY_VIOLATED service resource policyName tlsVersion
org_policy/tls_cipher PERMISSION_DENIED TLS_CIPHER_RESTRICTION_VIOLATED service consumer policy_name checked_value
org_policy/endpoint PERMISSION_DENIED ENDPOINT_USAGE_RESTRICTION_VIOLATED service consumer policy_name checked_value
justification PERMISSION_DENIED
account_disabled UNAUTHENTICATED ACCOUNT_STATE_INVALID service method email
account_disabled/blocked UNAUTHENTICATED USER_BLOCKED_BY_ADMIN
token_expired UNAUTHENTICATED ACCESS_TOKEN_EXPIRED service method
scope_missing PERMISSION_DENIED ACCESS_TOKEN_SCOPE_INSUFFICIENT service method
credentials_invalid UNAUTHENTICATED CREDENTIALS_MISSING service method
credentials_invalid/token_type UNAUTHENTICATED ACCESS_TOKEN_TYPE_UNSUPPORTED service method
credentials_invalid/jwt UNAUTHENTICATED JWT_TOKEN_INVALID service
credentials_invalid/api_key INVALID_ARGUMENT API_KEY_INVALID
credentials_invalid/api_key_blocked PERMISSION_DENIED API_KEY_SERVICE_BLOCKED
ekm_unreachable FAILED_PRECONDITION
rate_limit RESOURCE_EXHAUSTED RATE_LIMIT_EXCEEDED consumer quota_metric quota_limit quota_location quota_limit_value
unavailable UNAVAILABLE
unknown_reason PERMISSION_DENIED REASON_OF_NEXT_YEAR
malformed_answer/large RESOURCE_EXHAUSTED
malformed_answer/too_large RESOURCE_EXHAUSTED
"""
"""Cause, status, ErrorInfo's reason and metadata: google/api/error_reason.proto of googleapis/googleapis on GitHub."""


@pytest.mark.parametrize("answer", ANSWERS.split("\n")[1:-1])
async def test_a_cause_has_the_status_and_the_error_info_that_google_gives_it(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, answer: str
) -> None:
    cause, status, *info = answer.split()
    error = await refuse(client, emulator, cause=cause)
    assert error.grpc_status_code is grpc.StatusCode[status]
    assert error.reason == (info[0] if info else None)
    assert set(info[1:]) <= set(error.metadata or {})
    assert "$" not in str(error)
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).ciphertext


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause.startswith("ekm")])
async def test_an_external_key_managers_error_has_the_keys_state_and_then_its_domain(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, cause: str
) -> None:
    error = await refuse(client, emulator, cause=cause)
    (failure,) = error.details
    state, domain = failure.violations
    assert error.grpc_status_code is grpc.StatusCode.FAILED_PRECONDITION
    assert (state.type, state.subject) == ("KEY_ENABLED", f"{KEY}/cryptoKeyVersions/1")
    assert domain.type.isupper()
    assert domain.description == error.message


async def test_the_further_details_are_there_a_perimeters_violation_a_link_a_quota_and_when_to_try_again(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    perimeter = await refuse(client, emulator, cause="perimeter/violation_only")
    (violation,) = perimeter.details[0].violations
    assert violation.type == "VPC_SERVICE_CONTROLS"
    assert perimeter.message.endswith(violation.description)
    disabled = await refuse(client, emulator, cause="api_disabled")
    assert disabled.details[1].links[0].url == disabled.metadata["activationUrl"]
    limit = await refuse(client, emulator, cause="rate_limit", seconds=7.5)
    quota = limit.details[1].violations[0]
    assert (quota.quota_metric, quota.quota_value) == ("cloudkms.googleapis.com/software_usage", 600)
    unavailable = await refuse(client, emulator, cause="unavailable", seconds=1)
    assert [type(detail) for detail in unavailable.details] == [error_details_pb2.RetryInfo]
    assert isinstance(limit.details[-1], error_details_pb2.RetryInfo)
    assert limit.details[-1].retry_delay.ToTimedelta().total_seconds() == 7.5


async def test_details_that_are_malformed_arrive_as_they_are(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    for form, error in [
        ("", DecodeError),
        ("/one_unreadable", DecodeError),
        ("/other_code", ValueError),
        ("/other_message", ValueError),
    ]:
        emulator.faults.add(EmulatorFault(kind="cause", cause=f"malformed_answer{form}", count=1))
        with pytest.raises(error):
            await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
    # A client that takes more metadata than gRPC's 16 KiB gets the perimeter's details, and one of 20,000 bytes.
    channel = grpc.aio.insecure_channel(str(emulator.address), options=[("grpc.max_metadata_size", 2**20)])
    async with channel:
        patient = KeyManagementServiceAsyncClient(transport=KeyManagementServiceGrpcAsyncIOTransport(channel=channel))
        assert (await refuse(patient, emulator, cause="malformed_answer/large")).reason == "SECURITY_POLICY_VIOLATED"


async def test_a_missing_role_is_also_missing_in_what_the_permissions_are_asked_for(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    emulator.faults.add(EmulatorFault(kind="cause", cause="role_missing", permission=USE_TO_ENCRYPT))
    request = iam_policy_pb2.TestIamPermissionsRequest(
        resource=KEY, permissions=[USE_TO_ENCRYPT, "cloudkms.cryptoKeys.get"]
    )
    assert (await client.test_iam_permissions(request, **ONCE)).permissions == ["cloudkms.cryptoKeys.get"]
    with pytest.raises(exceptions.PermissionDenied):
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
    assert (await client.get_crypto_key(name=KEY, **ONCE)).name == KEY


def test_each_cause_is_documented() -> None:
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert [cause for cause in CAUSES if f"`{cause.partition('/')[2] or cause}`" not in text] == []
