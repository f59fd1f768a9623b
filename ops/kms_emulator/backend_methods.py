"""Where keys can be besides Cloud KMS: connections to external key managers (EKM), and single-tenant HSM instances."""

from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import kms_v1 as kms
from google.cloud.kms_v1.types.ekm_service import VerifyConnectivityRequest, VerifyConnectivityResponse
from google.longrunning.operations_pb2 import Operation

from ops.kms_emulator import resource_names
from ops.kms_emulator.faults import EmulatorFaults
from ops.kms_emulator.model import failed_precondition
from ops.kms_emulator.store import EmulatorStore

_States = kms.SingleTenantHsmInstance.State


def get_hsm_instance(store: EmulatorStore, name: str) -> kms.SingleTenantHsmInstance:
    """An instance as it is now: DISABLED from its `disable_time` on. Raises NOT_FOUND."""
    instance: Any = kms.SingleTenantHsmInstance.from_json(store.get_backend(name))
    if instance.disable_time.timestamp() <= store.clock():
        instance.state = _States.DISABLED
    return kms.SingleTenantHsmInstance(instance)


def check_hsm_instance(store: EmulatorStore, name: str) -> None:
    """Raises FAILED_PRECONDITION, in plain words, where the instance is not ACTIVE: Google's text is not known."""
    state = get_hsm_instance(store, name).state
    if state != _States.ACTIVE:
        raise failed_precondition(f"{name} is not active, its state is {state.name}.")


class BackendMethods:
    """Methods of EkmService and HsmManagement."""

    def __init__(self, store: EmulatorStore, faults: EmulatorFaults) -> None:
        self._store = store
        self._faults = faults

    async def create_ekm_connection(self, request: kms.CreateEkmConnectionRequest) -> kms.EkmConnection:
        id_ = resource_names.check_new_id(request.ekm_connection_id, "ekm_connection_id")
        connection: Any = request.ekm_connection
        connection.name = f"{resource_names.parse_location(request.parent)}/ekmConnections/{id_}"
        connection.create_time = datetime.fromtimestamp(self._store.clock(), UTC)
        await self._store.add_backend(connection.name, kms.EkmConnection.to_json(connection))
        return kms.EkmConnection(connection)

    async def get_ekm_connection(self, request: kms.GetEkmConnectionRequest) -> kms.EkmConnection:
        connection: kms.EkmConnection = kms.EkmConnection.from_json(self._store.get_backend(request.name))
        return connection

    async def verify_connectivity(self, request: VerifyConnectivityRequest) -> VerifyConnectivityResponse:
        """Nothing, or FAILED_PRECONDITION where there is a fault `ekm_…` of all keys or of one in the connection."""
        self._store.get_backend(request.name)
        for key in ("", *self._store.list_keys_in(request.name)):
            if refusal := self._faults.match_external("VerifyConnectivity", key, request.name):
                raise refusal
        return VerifyConnectivityResponse()

    async def create_single_tenant_hsm_instance(self, request: kms.CreateSingleTenantHsmInstanceRequest) -> Operation:
        """Create an instance that is ACTIVE at once; unlike Google's, it takes the `disable_time` of the request."""
        id_ = resource_names.check_new_id(request.single_tenant_hsm_instance_id, "single_tenant_hsm_instance_id")
        location = resource_names.parse_location(request.parent)
        instance: Any = request.single_tenant_hsm_instance
        now = datetime.fromtimestamp(self._store.clock(), UTC)
        instance.name = f"{location}/singleTenantHsmInstances/{id_}"
        instance.state = _States.ACTIVE
        instance.create_time = now
        instance.disable_time = instance.disable_time or now + timedelta(days=730)
        await self._store.add_backend(instance.name, kms.SingleTenantHsmInstance.to_json(instance))
        operation = Operation(name=f"{location}/operations/{id_}", done=True)
        operation.response.Pack(kms.SingleTenantHsmInstance.pb(instance))
        return operation

    async def get_single_tenant_hsm_instance(
        self, request: kms.GetSingleTenantHsmInstanceRequest
    ) -> kms.SingleTenantHsmInstance:
        return get_hsm_instance(self._store, request.name)

    async def execute_single_tenant_hsm_instance_proposal(
        self, request: kms.ExecuteSingleTenantHsmInstanceProposalRequest
    ) -> Operation:
        """Refreshes the instance, whatever the proposal: the emulator keeps none, and has no quorum."""
        name = request.name.partition("/proposals/")[0]
        instance: Any = get_hsm_instance(self._store, name)
        instance.disable_time = datetime.fromtimestamp(self._store.clock(), UTC) + timedelta(days=730)
        await self._store.replace_backend(name, kms.SingleTenantHsmInstance.to_json(instance))
        operation = Operation(name=f"{name.partition('/singleTenant')[0]}/operations/refresh", done=True)
        operation.response.Pack(
            kms.ExecuteSingleTenantHsmInstanceProposalResponse.pb(kms.ExecuteSingleTenantHsmInstanceProposalResponse())
        )
        return operation
