"""The data keys that this process holds unwrapped: each since it was needed, or since its turn in the background came.

A data key, once unwrapped, stays in memory, so an outage of KMS stops neither reads nor writes. Whoever needs the same
data key at the same time shares one call of KMS.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from services.backend.sealing import UsableKey
from shared.contract import CryptoMode
from shared.keyring.model import LOCAL_KEK, DataKey
from shared.keyring.wrapping import UnwrapError, Wrapping
from shared.kms.provider import KmsError

_AT_ONCE: Final = 16
"""Calls of KMS under way, at most."""
IN_THE_BACKGROUND: Final = 8
"""How many of them are for what nobody waits for: what a reader needs never waits for thousands."""

_WAITS: Final = "it is wrapped by KMS, which cannot be used"
"""Why a data key is not usable in mode `env`, however good it is."""

log = structlog.get_logger(__name__)


class HeldKeys:
    """Data keys by id, and why those that are not usable are not."""

    def __init__(self) -> None:
        self._usable: dict[str, UsableKey] = {}
        self._rows: dict[str, DataKey] = {}  # of those, as they were stored when they were seen last
        self._unusable: dict[str, str] = {}
        self._under_way: dict[str, asyncio.Task[KmsError | None]] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def __contains__(self, data_key_id: object) -> bool:
        """Whether it is held."""
        return data_key_id in self._usable

    def __getitem__(self, data_key_id: str) -> UsableKey:
        """One that is held."""
        return self._usable[data_key_id]

    @property
    def unusable(self) -> Mapping[str, str]:
        """Why data keys could not be unwrapped, by id; in mode `env` those that wait for KMS, too."""
        return self._unusable

    def knows(self, data_key_id: str) -> bool:
        """Whether it is held, or was tried in vain; one that only waits for KMS may be usable by now."""
        return data_key_id in self._usable or self._unusable.get(data_key_id, _WAITS) != _WAITS

    def add(self, key: UsableKey, row: DataKey) -> None:
        """Takes one that was just made, and stored so."""
        self._usable[key.id], self._rows[key.id] = key, row

    def lost(self, stored: Iterable[DataKey]) -> tuple[DataKey, ...]:
        """The rows of what is held that are not among those that are stored, as they were."""
        by_id = {key.id: key for key in stored}
        self._unusable = {data_key_id: why for data_key_id, why in self._unusable.items() if data_key_id in by_id}
        self._rows |= {data_key_id: by_id[data_key_id] for data_key_id in self._usable if data_key_id in by_id}
        return tuple(row for data_key_id, row in self._rows.items() if data_key_id not in by_id)

    def forget_why(self) -> None:
        """What could not be unwrapped is tried again when it is needed: KMS is back, say."""
        self._unusable.clear()

    async def take(self, key: DataKey, mode: CryptoMode, wrapping: Wrapping) -> None:
        """Unwraps a data key that is not held yet; one that cannot be unwrapped is told once. Raises KmsError."""
        if key.id in self._usable:
            return
        task = self._under_way.get(key.id)
        if task is None:
            task = self._under_way[key.id] = asyncio.create_task(self._unwrap(key, mode, wrapping))
            task.add_done_callback(lambda _: self._under_way.pop(key.id))
        outcome = await asyncio.shield(task)  # who leaves spoils it for nobody
        if isinstance(outcome, KmsError):
            raise outcome

    async def _unwrap(self, key: DataKey, mode: CryptoMode, wrapping: Wrapping) -> KmsError | None:
        """An error of KMS is given, not raised: several may wait for it, or nobody any more."""
        refusal = wrapping.refusal(key.wrapped)
        if refusal is None and mode is CryptoMode.ENV and key.wrapped.kek != LOCAL_KEK:
            refusal = UnwrapError(_WAITS)
        if refusal:
            self._cannot(key, refusal)
            return None
        try:
            async with self._at_once:
                self.add(UsableKey(key.id, await wrapping.unwrap(key)), key)
            self._unusable.pop(key.id, None)
        except UnwrapError as error:
            self._cannot(key, error)
        except KmsError as error:
            return error
        return None

    def _cannot(self, key: DataKey, error: UnwrapError) -> None:
        why = str(error)
        if self._unusable.get(key.id) != why:
            self._unusable[key.id] = why
            log.warning("a data key cannot be unwrapped; its records cannot be read", data_key=key.id, why=why)
