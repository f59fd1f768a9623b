"""Keys in the emulator that are held elsewhere: by an external key manager, or in an HSM of one customer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from google.cloud import kms_v1 as kms

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.model import Key, create_material
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key

LOCATION = "projects/demo/locations/global"
CONNECTION = f"{LOCATION}/ekmConnections/partner"
INSTANCE = f"{LOCATION}/singleTenantHsmInstances/own"
HELD = f"{LOCATION}/keyRings/app/cryptoKeys/held"
VERIFY = "cloudkms.ekmConnections.verifyConnectivity"


async def add_held_key(emulator: Emulator, level: str, backend: str = "", **instance: Any) -> None:
    """HELD, with two versions; `instance` are fields of the HSM instance."""
    if backend == CONNECTION:
        await emulator.store.add_backend(backend, kms.EkmConnection.to_json(kms.EkmConnection(name=backend)))
    elif backend:
        own = kms.SingleTenantHsmInstance(name=backend, **instance)
        await emulator.store.add_backend(backend, kms.SingleTenantHsmInstance.to_json(own))
    now = emulator.store.clock()
    key = Key(HELD, now, protection_level=level, backend=backend).with_new_version(create_material(), now)
    await emulator.store.add_key(key.with_new_version(create_material(), now).with_primary(2, now))


@asynccontextmanager
async def connected(emulator: Emulator, name: str = HELD) -> AsyncIterator[KmsKey]:
    key = connect_key(GcpKeySettings(key=name, endpoint=str(emulator.address), insecure=True))
    yield key
    await key.close()


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
