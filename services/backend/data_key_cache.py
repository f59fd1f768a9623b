"""The data keys that this process has unwrapped, and which ones it unwraps next in the background.

A data key, once unwrapped, stays in memory, so an outage of KMS stops neither reads nor writes. Callers that need the
same data key at the same time share one call of KMS.

Thousands of data keys of a version that KMS refuses must not use up its quota: a sample of each version is retried at
each check. If one of a sample can be unwrapped, all others of its version follow at once; so a version that was enabled
again is found within a few checks.
"""

import asyncio
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

import structlog

from services.backend.aes_gcm import UnwrappedKey
from shared.backend_contract import CryptoMode
from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.port import KmsError

SAMPLE_SIZE: Final = 8
"""Data keys of each version: some of them may be refused for a cause of their own."""


class UnwrapRetries:
    """What could not be unwrapped, as it was wrapped then."""

    def __init__(self) -> None:
        self._refused: dict[str, WrappedKey] = {}  # what was tried longest ago stands first

    def select_due(self, keys: Sequence[DataKey], unusable: Container[str]) -> list[DataKey]:
        """The keys to unwrap now, of `keys` not in memory: samples, and what is new, changed, or needs no call."""
        by_id = {key.id: key for key in keys}
        due = [key for key in keys if key.wrapped.kek == LOCAL_KEK or not self._is_refused(key, unusable)]
        self._refused = {name: wrapped for name, wrapped in self._refused.items() if name in by_id}
        selected_ids = {key.id for key in due}
        sampled: Counter[tuple[str, str]] = Counter()
        for name in self._refused:
            version = _get_kek_version(by_id[name])
            if name not in selected_ids and sampled[version] < SAMPLE_SIZE:
                sampled[version] += 1
                due.append(by_id[name])
        return due

    def select_recovered(
        self, keys: Sequence[DataKey], attempted: Sequence[DataKey], cached: Container[str]
    ) -> list[DataKey]:
        """Once `attempted` is done: all others of the versions of which a data key was refused, and no longer is."""
        done = {key.id for key in attempted}
        back = {_get_kek_version(key) for key in attempted if key.id in self._refused and key.id in cached}
        for key in attempted:
            self._refused.pop(key.id, None)
            if key.id not in cached:
                self._refused[key.id] = key.wrapped
        return [key for key in keys if key.id in self._refused and key.id not in done and _get_kek_version(key) in back]

    def _is_refused(self, key: DataKey, unusable: Container[str]) -> bool:
        return key.id in unusable and self._refused.get(key.id) == key.wrapped


def _get_kek_version(key: DataKey) -> tuple[str, str]:
    return key.wrapped.kek, key.wrapped.kek_version


_MAX_CONCURRENT_CALLS: Final = 16
"""Concurrent calls of KMS, at most."""
MAX_BACKGROUND_CALLS: Final = 8
"""How many of them are for what nobody waits for: what a reader needs never waits for thousands."""

_WAITS_FOR_KMS: Final = "it is wrapped by KMS, which cannot be used"
"""Why a data key is not usable in mode `env`, however good it is."""

log = structlog.get_logger(__name__)


class DataKeyCache:
    """Data keys by id, and why those that are not usable are not."""

    def __init__(self) -> None:
        self._keys: dict[str, UnwrappedKey] = {}
        self._rows: dict[str, DataKey] = {}  # of those keys, as last read from the database
        self._errors: dict[str, str] = {}
        self._in_flight: dict[str, asyncio.Task[KmsError | None]] = {}
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

    def __contains__(self, data_key_id: object) -> bool:
        """Whether it is in memory."""
        return data_key_id in self._keys

    def __getitem__(self, data_key_id: str) -> UnwrappedKey:
        """A data key in memory."""
        return self._keys[data_key_id]

    @property
    def errors(self) -> Mapping[str, str]:
        """Why data keys could not be unwrapped, by id; in mode `env` those that wait for KMS, too."""
        return self._errors

    def is_resolved(self, data_key_id: str) -> bool:
        """Whether it is in memory, or cannot be unwrapped; one that only waits for KMS may be usable by now."""
        return data_key_id in self._keys or self._errors.get(data_key_id, _WAITS_FOR_KMS) != _WAITS_FOR_KMS

    def add(self, key: UnwrappedKey, row: DataKey) -> None:
        """Takes one that was just made, and stored so."""
        self._keys[key.id], self._rows[key.id] = key, row

    def find_missing_rows(self, stored: Iterable[DataKey]) -> tuple[DataKey, ...]:
        """The rows of keys in memory that the database no longer contains, as they were."""
        by_id = {key.id: key for key in stored}
        self._errors = {data_key_id: error for data_key_id, error in self._errors.items() if data_key_id in by_id}
        self._rows |= {data_key_id: by_id[data_key_id] for data_key_id in self._keys if data_key_id in by_id}
        return tuple(row for data_key_id, row in self._rows.items() if data_key_id not in by_id)

    def clear_errors(self) -> None:
        """What could not be unwrapped is tried again when it is needed: KMS is back, say."""
        self._errors.clear()

    async def unwrap(self, key: DataKey, mode: CryptoMode, wrapping: KeyWrapper) -> None:
        """Unwraps a data key that is not in memory; logs once if it cannot be unwrapped. Raises KmsError."""
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
        message = str(error)
        if self._errors.get(key.id) != message:
            self._errors[key.id] = message
            log.warning("data key cannot be unwrapped; its records cannot be read", data_key=key.id, error=message)
