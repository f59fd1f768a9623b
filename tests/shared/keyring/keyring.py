"""A keyring as the tests use it: data keys with known secrets, and a rotation that is called until it ends."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, Connection

from shared.keyring import store
from shared.keyring.administration import (
    JournalEntry,
    JournalStep,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
)
from shared.keyring.database import Database
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.model import DataKey, DataKeyStatus, KeyringFingerprint, WrappedKey, compute_fingerprint
from shared.keyring.tables import TABLES, data_keys
from shared.keyring.wrapping import KeyWrapper, LocalKeyWrapper
from shared.kms.port import EncryptResult, KmsKey

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
OTHER_KEY = "projects/other/locations/global/keyRings/app/cryptoKeys/ledger"
REWRAP, NEW_DEK = RotationType.REWRAP_KEK, RotationType.NEW_DEK


def secret_of(name: str) -> bytes:
    return name.encode().ljust(32, b"-")


def insert_rows(connection: Connection, keys: Iterable[DataKey]) -> None:
    """Thousands at once."""
    rows = [
        {
            "id": key.id,
            "status": key.status.value,
            "wrapped": key.wrapped.ciphertext,
            "kek": key.wrapped.kek,
            "kek_version": key.wrapped.kek_version,
            "algorithm": key.algorithm,
            "fingerprint": key.fingerprint,
            "created_at": key.created_at.timestamp(),
        }
        for key in keys
    ]
    connection.execute(data_keys.insert(), rows)


@dataclass
class Keyring:
    database: Database
    wrapping: KeyWrapper
    administration: LocalAdministration
    token: str = ""

    async def take_lease(self) -> None:
        self.token = (await self.administration.acquire_lease("the test", 600)).token

    async def add(
        self, name: str, wrapped: WrappedKey | None = None, status: DataKeyStatus = DataKeyStatus.RETIRED
    ) -> DataKey:
        wrapped = wrapped or await self.wrapping.wrap(name, secret_of(name))
        key = DataKey(name, status, wrapped, compute_fingerprint(secret_of(name)), datetime(2026, 11, 25, tzinfo=UTC))
        await self.database.write_exclusively(lambda connection: store.insert_data_key(connection, key))
        return key

    async def replace(self, key: DataKey, wrapped: WrappedKey) -> None:
        """As another hand does."""
        assert await self.database.write_exclusively(
            lambda connection: store.replace_wrap(connection, key.id, key.wrapped, wrapped)
        )

    async def fill(self, number: int) -> list[DataKey]:
        return [
            await self.add(f"k{i:03}", status=DataKeyStatus.RETIRED if i else DataKeyStatus.ACTIVE)
            for i in range(number)
        ]

    async def keys(self) -> dict[str, DataKey]:
        found = await self.database.read(lambda connection: store.list_data_keys(connection, "", 1000))
        return {key.id: key for key in found}

    async def key(self, name: str) -> DataKey:
        return (await self.keys())[name]

    async def versions(self) -> dict[str, str]:
        return {name: key.wrapped.kek_version for name, key in (await self.keys()).items()}

    async def statuses(self) -> dict[str, DataKeyStatus]:
        return {name: key.status for name, key in (await self.keys()).items()}

    async def fingerprint(self) -> str:
        whole = KeyringFingerprint()
        for key in (await self.keys()).values():
            whole.add(key.id, key.fingerprint.hex())
        return whole.hexdigest()

    def request(self, type_: RotationType = REWRAP, rotation_id: str = "r1", **other: Any) -> RotateRequest:
        values = {"rotation_id": rotation_id, "type": type_, "token": self.token, "caller": "the test", **other}
        return RotateRequest.model_validate(values)

    async def rotate(self, type_: RotationType = REWRAP, rotation_id: str = "r1", **other: Any) -> RotationProgress:
        """Calls until it is no longer running."""
        for _ in range(1000):
            progress = await self.administration.rotate(self.request(type_, rotation_id, **other))
            if progress.state is not RotationState.RUNNING:
                return progress
        raise AssertionError("the rotation does not end")

    async def rollback(self, rotation_id: str = "r1") -> RotationProgress:
        for _ in range(1000):
            progress = await self.administration.rollback(rotation_id, self.token)
            if progress.state is not RotationState.RUNNING:
                return progress
        raise AssertionError("the rollback does not end")


def entry(step: JournalStep, outcome: StepOutcome = StepOutcome.SUCCEEDED, **columns: Any) -> JournalEntry:
    return JournalEntry(step=step, outcome=outcome, **columns)


class Meddled:
    """A KMS during whose next Encrypt, once, somebody else does something."""

    def __init__(self, real: KmsKey) -> None:
        self._real = real
        self.profile, self.account = real.profile, real.account
        self.meddle: Callable[[], Awaitable[object]] | None = None
        self.decrypt, self.describe_key = real.decrypt, real.describe_key
        self.check_key_store = real.check_key_store
        self.check_permissions, self.measure_connectivity = real.check_permissions, real.measure_connectivity
        self.read_service_clock, self.explain_denial = real.read_service_clock, real.explain_denial
        self.close = real.close

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        meddle, self.meddle = self.meddle, None
        if meddle:
            await meddle()
        return await self._real.encrypt(plaintext, aad, timeout=timeout)


@asynccontextmanager
async def opened(
    url: URL, kms: KmsKey, *, local: LocalKeyWrapper | None = None, kek: str = KEY, **other: Any
) -> AsyncIterator[Keyring]:
    database = await Database.open(url, TABLES)
    try:
        wrapping = KeyWrapper(kms, kek, 10.0, local)
        yield Keyring(database, wrapping, LocalAdministration(database, wrapping, **other))
    finally:
        await database.close()
