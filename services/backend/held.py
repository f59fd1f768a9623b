"""The data keys that this process holds unwrapped: each since it was needed, or since its turn in the background came.

A data key, once unwrapped, stays in memory, so an outage of KMS stops neither reads nor writes. Whoever needs the same
data key at the same time shares one call of KMS.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from services.backend.sealing import UnwrappedKey
from shared.contract import CryptoMode
from shared.keyring.model import LOCAL_KEK, DataKey
from shared.keyring.wrapping import UnwrapError, KeyWrapper
from shared.kms.provider import KmsError

_MAX_CONCURRENT_CALLS: Final = 16
"""Calls of KMS under way, at most."""
MAX_BACKGROUND_CALLS: Final = 8
"""How many of them are for what nobody waits for: what a reader needs never waits for thousands."""

_WAITS_FOR_KMS: Final = "it is wrapped by KMS, which cannot be used"
"""Why a data key is not usable in mode `env`, however good it is."""

log = structlog.get_logger(__name__)


class DataKeyCache:
    """Data keys by id, and why those that are not usable are not."""

    def __init__(self) -> None:
        self._keys: dict[str, UnwrappedKey] = {}
        self._rows: dict[str, DataKey] = {}  # of those, as they were stored when they were seen last
        self._errors: dict[str, str] = {}
        self._in_flight: dict[str, asyncio.Task[KmsError | None]] = {}
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

    def __contains__(self, data_key_id: object) -> bool:
        """Whether it is held."""
        return data_key_id in self._keys

    def __getitem__(self, data_key_id: str) -> UnwrappedKey:
        """One that is held."""
        return self._keys[data_key_id]

    @property
    def errors(self) -> Mapping[str, str]:
        """Why data keys could not be unwrapped, by id; in mode `env` those that wait for KMS, too."""
        return self._errors

    def is_resolved(self, data_key_id: str) -> bool:
        """Whether it is held, or was tried in vain; one that only waits for KMS may be usable by now."""
        return data_key_id in self._keys or self._errors.get(data_key_id, _WAITS_FOR_KMS) != _WAITS_FOR_KMS

    def add(self, key: UnwrappedKey, row: DataKey) -> None:
        """Takes one that was just made, and stored so."""
        self._keys[key.id], self._rows[key.id] = key, row

    def find_missing_rows(self, stored: Iterable[DataKey]) -> tuple[DataKey, ...]:
        """The rows of what is held that are not among those that are stored, as they were."""
        by_id = {key.id: key for key in stored}
        self._errors = {data_key_id: why for data_key_id, why in self._errors.items() if data_key_id in by_id}
        self._rows |= {data_key_id: by_id[data_key_id] for data_key_id in self._keys if data_key_id in by_id}
        return tuple(row for data_key_id, row in self._rows.items() if data_key_id not in by_id)

    def clear_errors(self) -> None:
        """What could not be unwrapped is tried again when it is needed: KMS is back, say."""
        self._errors.clear()

    async def unwrap(self, key: DataKey, mode: CryptoMode, wrapping: KeyWrapper) -> None:
        """Unwraps a data key that is not held yet; one that cannot be unwrapped is told once. Raises KmsError."""
        if key.id in self._keys:
            return
        task = self._in_flight.get(key.id)
        if task is None:
            task = self._in_flight[key.id] = asyncio.create_task(self._unwrap_uncached(key, mode, wrapping))
            task.add_done_callback(lambda _: self._in_flight.pop(key.id))
        outcome = await asyncio.shield(task)  # who leaves spoils it for nobody
        if isinstance(outcome, KmsError):
            raise outcome

    async def _unwrap_uncached(self, key: DataKey, mode: CryptoMode, wrapping: KeyWrapper) -> KmsError | None:
        """An error of KMS is given, not raised: several may wait for it, or nobody any more."""
        refusal = wrapping.explain_refusal(key.wrapped)
        if refusal is None and mode is CryptoMode.ENV and key.wrapped.kek != LOCAL_KEK:
            refusal = UnwrapError(_WAITS_FOR_KMS)
        if refusal:
            self._set_error(key, refusal)
            return None
        try:
            async with self._semaphore:
                self.add(UnwrappedKey(key.id, await wrapping.unwrap(key)), key)
            self._errors.pop(key.id, None)
        except UnwrapError as error:
            self._set_error(key, error)
        except KmsError as error:
            return error
        return None

    def _set_error(self, key: DataKey, error: UnwrapError) -> None:
        why = str(error)
        if self._errors.get(key.id) != why:
            self._errors[key.id] = why
            log.warning("data key cannot be unwrapped; its records cannot be read", data_key=key.id, error=why)
