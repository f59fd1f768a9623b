"""The KMS Inventory API: what Google's own products protect with a version, as a test says it."""

from google.cloud.kms_inventory_v1 import GetProtectedResourcesSummaryRequest, ProtectedResourcesSummary

from ops.kms_emulator import resource_names
from ops.kms_emulator.store import EmulatorStore


class InventoryMethods:
    def __init__(self, store: EmulatorStore) -> None:
        self._store = store

    async def get_protected_resources_summary(
        self, request: GetProtectedResourcesSummaryRequest
    ) -> ProtectedResourcesSummary:
        """Of a version that exists."""
        key, number = resource_names.parse_version_name(request.name)
        (await self._store.get_key(key)).version(number)
        return ProtectedResourcesSummary(self._store.protected.get(request.name), name=request.name)
