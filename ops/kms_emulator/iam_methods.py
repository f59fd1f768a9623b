"""TestIamPermissions of google.iam.v1.IAMPolicy: everything is granted but what a `denied` fault refuses."""

from google.iam.v1 import iam_policy_pb2

from ops.kms_emulator import resource_names
from ops.kms_emulator.faults import EmulatorFaults
from ops.kms_emulator.model import StatusError, invalid_argument
from ops.kms_emulator.store import EmulatorStore
from shared.kms.gcp.profile import get_key_name


async def test_iam_permissions(
    request: iam_policy_pb2.TestIamPermissionsRequest, *, store: EmulatorStore, faults: EmulatorFaults
) -> iam_policy_pb2.TestIamPermissionsResponse:
    """Return which of the permissions the caller has; none on a missing resource."""
    for permission in request.permissions:
        if "*" in permission:  # "Permissions with wildcards are not allowed": google/iam/v1/iam_policy.proto
            raise invalid_argument(f"The permission [{permission}] holds a wildcard.")
    granted = list(request.permissions) if await _resource_exists(request.resource, store) else []
    key = get_key_name(request.resource)
    return iam_policy_pb2.TestIamPermissionsResponse(
        permissions=[permission for permission in granted if not faults.denies(permission, key)]
    )


async def _resource_exists(resource: str, store: EmulatorStore) -> bool:
    try:
        if "/cryptoKeys/" in resource:
            await store.get_key(resource_names.parse_key_name(resource))
        else:
            store.get_key_ring_time(resource_names.parse_key_ring(resource))
    except StatusError:
        return False
    return True
