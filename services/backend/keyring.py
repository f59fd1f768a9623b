"""The data keys in memory: what wraps and unwraps them, which one is active, and which are unwrapped next.

A data key, once unwrapped, stays in memory, so an outage of KMS stops neither reads nor writes. Callers that need the
same data key at the same time share one call of KMS. `crypto_mode` decides the mode.

A data key encrypts only while a restart would read it from its row: a row that somebody changed is opened once more. If
it does not open, or opens to another key, the data key in memory still decrypts, and `broken_rows` says why.

A new active key is created only if the active one cannot be used (there is none yet, or a restart in an outage, or a
KMS version that is disabled or destroyed), and if KMS is back and the local key wraps the active one: somebody who
copied the disk has that, too, and must not read what is written from then on. The mode decides what wraps it, and the
one before it is retired: it still decrypts once it can be unwrapped again. The keyring never removes a data key.
"""

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from services.backend.aes_gcm import UnwrappedKey
from services.backend.local_key_file import InstanceLocalKey, LocalKeyError
from shared.backend_contract import LOCAL_KEK_VERSION, CryptoMode
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.model import (
    KEY_BYTES,
    LOCAL_KEK,
    DataKey,
    DataKeyStatus,
    WrappedKey,
    build_wrapping_aad,
    compute_fingerprint,
)
from shared.keyring.store import DataKeyStore, OtherLocalKeyError, RetiredVersionError
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.port import KmsError
from shared.process.concurrency import run_concurrently

SAMPLE_SIZE: Final = 8
"""Data keys of each version: one alone may be refused for another cause."""


class UnwrapRetries:
    """What could not be unwrapped, as it was wrapped then.

    Thousands of data keys of a version that KMS refuses must not use up its quota: a sample of each version is retried
    at each check. If one of a sample can be unwrapped, all others of its version follow at once; so a version that was
    enabled again is found within a few checks.
    """

    def __init__(self) -> None:
        self._refused: dict[str, WrappedKey] = {}  # what was tried longest ago stands first

    def select_due(self, keys: Sequence[DataKey], unusable: Container[str]) -> list[DataKey]:
        """The keys to unwrap now, of `keys` not in memory: samples, and what is new, changed, or needs no call."""
        by_id = {key.id: key for key in keys}
        due = [
            key
            for key in keys
            if key.wrapped.kek == LOCAL_KEK or key.id not in unusable or self._refused.get(key.id) != key.wrapped
        ]
        self._refused = {name: wrapped for name, wrapped in self._refused.items() if name in by_id}
        selected_ids = {key.id for key in due}
        sampled: Counter[tuple[str, str]] = Counter()
        for name in self._refused:
            version = by_id[name].wrapped.by
            if name not in selected_ids and sampled[version] < SAMPLE_SIZE:
                sampled[version] += 1
                due.append(by_id[name])
        return due

    def select_recovered(
        self, keys: Sequence[DataKey], attempted: Sequence[DataKey], cached: Container[str]
    ) -> list[DataKey]:
        """Once `attempted` is done: all others of the versions of which a data key was refused, and no longer is."""
        done = {key.id for key in attempted}
        back = {key.wrapped.by for key in attempted if key.id in self._refused and key.id in cached}
        for key in attempted:
            self._refused.pop(key.id, None)
            if key.id not in cached:
                self._refused[key.id] = key.wrapped
        return [key for key in keys if key.id in self._refused and key.id not in done and key.wrapped.by in back]


_MAX_CONCURRENT_CALLS: Final = 16
MAX_BACKGROUND_CALLS: Final = 8
"""How many of them are for background work: a reader never waits for thousands."""

_WAITS_FOR_KMS: Final = "it is wrapped by KMS, which cannot be used"
"""Why a data key is not usable in mode `env`, however good it is."""
_REPAIR: Final = "restart nothing until `keypulse-rotator restore latest` has put the row back"

log = structlog.get_logger(__name__)


class DataKeyCache:
    """Data keys by id, and why the others are not usable."""

    def __init__(self) -> None:
        self._keys: dict[str, UnwrappedKey] = {}
        self._rows: dict[str, DataKey] = {}  # that opened to those keys
        self._unproven: dict[str, DataKey] = {}  # rows that changed since, and that KMS has to open
        self._errors: dict[str, str] = {}
        self._in_flight: dict[tuple[str, WrappedKey], asyncio.Task[KmsError | None]] = {}
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

    def __contains__(self, data_key_id: object) -> bool:
        return data_key_id in self._keys

    def __getitem__(self, data_key_id: str) -> UnwrappedKey:
        return self._keys[data_key_id]

    @property
    def errors(self) -> Mapping[str, str]:
        """Why data keys could not be unwrapped, by id; in mode `env` also which wait for KMS."""
        return self._errors

    @property
    def broken_rows(self) -> Mapping[str, str]:
        """Why the rows of keys in memory no longer open to them, by id."""
        return {data_key_id: error for data_key_id, error in self._errors.items() if data_key_id in self._keys}

    def get_row(self, data_key_id: str) -> DataKey:
        """The row that opened to this key in memory, or that KMS has to open."""
        return self._unproven.get(data_key_id) or self._rows[data_key_id]

    def is_proven(self, row: DataKey) -> bool:
        """Whether the key in memory was read from what this row holds."""
        return _holds_same(self._rows.get(row.id), row)

    def is_usable(self, row: DataKey) -> bool:
        """Whether that is so, as far as can be known while KMS cannot be used."""
        return self.is_proven(row) or _holds_same(self._unproven.get(row.id), row)

    def is_resolved(self, data_key_id: str) -> bool:
        """Whether it is in memory, or cannot be unwrapped; one that only waits for KMS may be usable by now."""
        return data_key_id in self._keys or self._errors.get(data_key_id, _WAITS_FOR_KMS) != _WAITS_FOR_KMS

    def add(self, key: UnwrappedKey, row: DataKey) -> None:
        """Takes one that was just stored as this row."""
        self._keys[key.id], self._rows[key.id] = key, row

    def find_missing_rows(self, stored: Iterable[DataKey]) -> tuple[DataKey, ...]:
        """The rows of keys in memory that the database no longer contains, as they were; forgets the errors of others.

        A row that holds again what was read from it is no longer broken.
        """
        by_id = {key.id: key for key in stored}
        proven = {data_key_id: row for data_key_id, row in by_id.items() if self.is_proven(row)}
        self._errors = {
            data_key_id: error for data_key_id, error in self._errors.items() if data_key_id in by_id.keys() - proven
        }
        self._rows |= proven  # another status, say
        self._unproven = {data_key_id: row for data_key_id, row in self._unproven.items() if data_key_id not in proven}
        return tuple(row for data_key_id, row in self._rows.items() if data_key_id not in by_id)

    def clear_errors(self) -> None:
        """What could not be unwrapped is tried again when it is needed: KMS is back, say. A broken row stays one."""
        self._errors = dict(self.broken_rows)

    async def unwrap(self, key: DataKey, mode: CryptoMode, wrapping: KeyWrapper) -> None:
        """Unwraps a data key that is not in memory, or whose row changed; logs once if it cannot. Raises KmsError."""
        if self.is_proven(key):
            return
        call = key.id, key.wrapped
        task = self._in_flight.get(call)
        if task is None:
            task = self._in_flight[call] = asyncio.create_task(self._unwrap_uncached(key, mode, wrapping))
            task.add_done_callback(lambda _: self._in_flight.pop(call))
        outcome = await asyncio.shield(task)  # one caller that is cancelled cancels no other
        if isinstance(outcome, KmsError):
            raise outcome

    async def _unwrap_uncached(self, key: DataKey, mode: CryptoMode, wrapping: KeyWrapper) -> KmsError | None:
        """Returns an error of KMS instead of raising it: many callers may wait for it, or none any more."""
        refusal, is_previous = wrapping.explain_refusal(key.wrapped), wrapping.is_previous(key.wrapped.kek)
        if refusal is None and mode is CryptoMode.ENV and key.wrapped.kek != LOCAL_KEK and not is_previous:
            if key.id in self._keys:
                if key.id not in self._errors:  # KMS opens its new row later
                    self._unproven[key.id] = key
                return None
            refusal = UnwrapError(_WAITS_FOR_KMS)
        if refusal:
            self._set_error(key, refusal)
            return None
        try:
            async with self._semaphore:
                unwrapped = UnwrappedKey(key.id, await wrapping.unwrap(key))
            if self._keys.setdefault(key.id, unwrapped) == unwrapped:
                self._rows[key.id] = key
                self._unproven.pop(key.id, None)
                self._errors.pop(key.id, None)
            else:
                self._set_error(key, UnwrapError("it opens to another key than before"))
        except UnwrapError as error:
            self._set_error(key, error)
        except KmsError as error:
            if not is_previous:
                return error
            # `kms` alone decides the mode.
            self._set_error(key, UnwrapError(f"{key.wrapped.kek}: {error.label}"))
        return None

    def _set_error(self, key: DataKey, error: UnwrapError) -> None:
        self._unproven.pop(key.id, None)
        message = str(error)
        if self._errors.get(key.id) == message:
            return
        self._errors[key.id] = message
        if key.id in self._keys:
            log.error("data key is lost at a restart: its row changed", data_key=key.id, error=message, hint=_REPAIR)
        else:
            log.warning("data key cannot be unwrapped; its records cannot be read", data_key=key.id, error=message)


def _holds_same(known: DataKey | None, row: DataKey) -> bool:
    return known is not None and (known.wrapped, known.fingerprint) == (row.wrapped, row.fingerprint)


_STATUSES_UNWRAPPED_FIRST: Final = {DataKeyStatus.ACTIVE, DataKeyStatus.PENDING}
"""Data keys without which nothing can be written, now or after a rotation that waits for this instance."""

_MAX_NAMED: Final = 3
_RESTORED_SECONDS: Final = 3600.0
"""How long `/healthz` names a row that was put back, for the person who restored the database."""


class KeyUnavailableError(Exception):
    """A data key cannot be used now; the message says why, and contains no key material."""


class KeyAbandonedError(KeyUnavailableError):
    """A data key that was abandoned."""


class Keyring:
    """The data keys in memory. The active key and the mode change under `lock`, one change at a time."""

    def __init__(
        self,
        store: DataKeyStore,
        local_key: InstanceLocalKey,
        wrapping: KeyWrapper,
        heartbeat: InstanceHeartbeat,
        *,
        background: KeyWrapper,
        clock: Callable[[], float],
    ) -> None:
        """Reads nothing yet.

        `local_key` wraps while KMS fails; it is reopened at each check while it is missing. `heartbeat` gets the
        pending data keys of this instance. `background` wraps by the same keys below their quotas, for work that nobody
        waits for.
        """
        self._store = store
        self._heartbeat = heartbeat
        self._local = local_key
        self._wrapping = wrapping
        self._clock = clock
        self._background_wrapping = background
        self._cache = DataKeyCache()
        self._retries = UnwrapRetries()
        self._active: UnwrappedKey | None = None
        self._ids_wrapped_locally: frozenset[str] = frozenset()
        self._ids_wrapped_locally_ever: set[str] = set()
        """Who copied the disk may have these data keys."""
        self._unnamed_keks: Mapping[str, int] = {}
        """How many data keys each KMS key wraps that no setting names."""
        self._pending: tuple[str, ...] = ()
        self._encryptions = Counter[str]()
        """Since the last heartbeat, by data key."""
        self._restored_at: dict[str, float] = {}
        """When rows were last put back, by the ids of their data keys; unix time."""
        self.restored_count = 0
        """Rows that this instance put back since its start."""
        self.lock = asyncio.Lock()
        """Locked while the active key or the mode changes."""
        self._logged_state: tuple[CryptoMode, bool] | None = None
        self.mode = CryptoMode.ENV
        self.reason: str | None = "KMS has not answered yet"
        """Why the mode is `env`, no data key can be used, or KMS is over its quota; None while healthy."""
        self.initialised_at = clock()
        """When mode or readiness last changed, or the start; unix time."""

    @property
    def can_encrypt(self) -> bool:
        """False only while no data key can be used."""
        return self._active is not None

    @property
    def is_ready(self) -> bool:
        """Whether records can be encrypted, and a restart would lose no data key."""
        return self.can_encrypt and not self.broken_rows

    @property
    def broken_rows(self) -> Mapping[str, str]:
        """Why the rows of data keys no longer open to the keys in memory, by id: a restart would lose these."""
        return self._cache.broken_rows

    @property
    def unwrap_errors(self) -> Mapping[str, str]:
        """Why data keys cannot be unwrapped by this instance, by their ids."""
        return self._cache.errors

    @property
    def is_local_key_missing(self) -> bool:
        """Whether a restart while KMS is away could neither write nor read."""
        return self._local.missing_reason is not None

    def list_problems(self) -> list[str]:
        """What is wrong with the local key and the data keys, for `/healthz`: a sentence each."""
        found = (
            [f"there is no local key for an outage of KMS: {self._local.missing_reason}"]
            if self._local.missing_reason
            else []
        )
        if self._unnamed_keks:
            found.append(
                "data keys of a KMS key that neither kms nor previous_kms names: "
                f"{sum(self._unnamed_keks.values())}; the log names it"
            )
        broken = self.broken_rows
        if broken:
            named = [f"{data_key_id} ({error})" for data_key_id, error in broken.items()]
            found.append(
                f"a restart would lose data keys whose rows somebody changed: {_format_list(named)}; nothing is "
                f"encrypted with them: {_REPAIR}"
            )
        lost = self._ids_wrapped_locally & self._cache.errors.keys() - broken.keys()
        if lost:
            found.append(
                f"{len(lost)} of the data keys are wrapped by a local key that is lost, and their records cannot be "
                "read: put it back, or see keypulse-backend admin abandon"
            )
        if others := len(self._cache.errors) - len(broken) - len(lost):
            found.append(f"data keys that cannot be unwrapped: {others}; so their records cannot be read")
        recent = [name for name, at in self._restored_at.items() if at > self._clock() - _RESTORED_SECONDS]
        if recent:
            found.append(
                "the database lost data keys, which were put back from memory within an hour: "
                f"{_format_list(recent[::-1])}; it may hold an older state: look for lost records"
            )
        return found

    def get_active_key(self) -> UnwrappedKey:
        """The key for new records. Raises KeyUnavailableError."""
        if self._active is None:
            raise KeyUnavailableError(f"no data key can be used: {self.reason or 'the row of the active one changed'}")
        return self._active

    def get_row(self, data_key_id: str) -> DataKey:
        """The row that opened to this key in memory."""
        return self._cache.get_row(data_key_id)

    async def get_key(self, data_key_id: str) -> UnwrappedKey:
        """The key that a record was encrypted with; one that another instance has created since is read at once.

        Raises DatabaseError, KeyAbandonedError, and KeyUnavailableError if it is not there or cannot be unwrapped.
        """
        if not self._cache.is_resolved(data_key_id):
            await self._load_key(data_key_id)
        if data_key_id in self._cache:
            return self._cache[data_key_id]
        cause = self._cache.errors.get(data_key_id)
        if await self._store.is_abandoned(data_key_id):
            raise KeyAbandonedError(f"its data key {data_key_id} was abandoned with the local key that wrapped it")
        cause = cause or "it is not in the keyring"
        raise KeyUnavailableError(f"its data key {data_key_id} cannot be unwrapped: {cause}")

    async def use_kms(self) -> None:
        """One round trip of KMS, then uses the keyring in mode `kms`; the caller holds `lock`.

        Raises KmsError, DatabaseError, and RetiredVersionError if KMS encrypts by a version that was retired.
        """
        await self._local.reopen_if_missing()
        await self._wrapping.wrap("check", os.urandom(KEY_BYTES))
        if self.mode is not CryptoMode.KMS:
            self._cache.clear_errors()
        await self._use_keys(CryptoMode.KMS)

    async def use_local_key(self) -> None:
        """Uses the keyring in mode `env`; the caller holds `lock`. Raises LocalKeyError, DatabaseError."""
        await self._use_keys(CryptoMode.ENV)

    def count_encryption(self, data_key_id: str) -> None:
        """In memory until the next heartbeat: a kill forgets those of one interval at most."""
        self._encryptions[data_key_id] += 1

    async def send_heartbeat(self) -> None:
        """Writes that this instance is alive, and what it holds and has encrypted. Raises DatabaseError."""
        counted, self._encryptions = self._encryptions, Counter()
        try:
            await self._heartbeat.send(self._pending, counted)
        except BaseException:  # perhaps they are written: then they count twice, which rotates too early at worst
            self._encryptions += counted
            raise

    async def reload(self) -> None:
        """Reads the keyring again, now, because somebody changed it. Raises DatabaseError.

        What KMS says meanwhile decides nothing: that is for the checks.
        """
        async with self.lock:
            await self._local.reopen_if_missing()
            await self.reload_keys()
            await self.send_heartbeat()

    async def replace_active_key(self, data_key_id: str) -> None:
        """The row of the active data key is lost or changed: puts it back or opens it, and uses what is active then.

        Raises DatabaseError, and KeyUnavailableError if KMS failed.
        """
        async with self.lock:
            row = await self._store.find(data_key_id)
            if (row and _holds_same(self.get_row(data_key_id), row)) or (
                self._active and self._active.id != data_key_id
            ):
                return  # somebody else was faster
            try:
                await self._use_keys(self.mode)
            except (KmsError, RetiredVersionError, LocalKeyError) as error:
                raise KeyUnavailableError(f"the database lost or changed data key {data_key_id}: {error}") from None

    async def reload_keys(self) -> None:
        """Uses the keyring as it is now, in the current mode; the caller holds `lock`."""
        try:
            await self._use_keys(self.mode)
        except (KmsError, RetiredVersionError, LocalKeyError) as error:
            log.warning("KMS failed while the keyring was reloaded; the next check tries again", error=str(error))

    async def unwrap_remaining(self) -> None:
        """Unwraps the data keys that no record has needed yet, and re-wraps by KMS what the local key wraps.

        A few at a time, below KMS's quota, and beside the checks: of thousands it takes minutes. What KMS fails at
        meanwhile decides nothing; the next time continues from there. Of what KMS refused, a sample is tried again, see
        `UnwrapRetries`. Raises DatabaseError.
        """
        mode = self.mode
        keys = await self._store.list_all()
        others = [key for key in keys if not self._cache.is_proven(key)]
        local = [key for key in keys if key.wrapped.kek == LOCAL_KEK and key.status is not DataKeyStatus.ACTIVE]
        try:
            unwrap = partial(self._cache.unwrap, mode=mode, wrapping=self._background_wrapping)
            due = self._retries.select_due(others, self._cache.errors)
            await run_concurrently(due, unwrap, _ignore_results, MAX_BACKGROUND_CALLS)
            opened = {key.id for key in due if self._cache.is_proven(key)}
            following = self._retries.select_recovered(others, due, opened)
            await run_concurrently(following, unwrap, _ignore_results, MAX_BACKGROUND_CALLS)
            if mode is CryptoMode.KMS:
                proven = [key for key in local if self._cache.is_proven(key)]
                await run_concurrently(proven, self._rewrap, _ignore_results, MAX_BACKGROUND_CALLS)
        except (KmsError, RetiredVersionError) as error:
            log.warning("KMS failed while data keys were unwrapped; they are tried again", error=str(error))

    async def _rewrap(self, key: DataKey) -> None:
        wrapped = await self._background_wrapping.wrap(key.id, self._cache[key.id].secret)
        if await self._store.replace_wrap(key, wrapped):
            self._cache.add(self._cache[key.id], replace(key, wrapped=wrapped))
            log.info("data key rewrapped by KMS", data_key=key.id, kek_version=wrapped.kek_version)

    async def _use_keys(self, mode: CryptoMode) -> None:
        """Makes a usable key the active one; unwraps it and the pending ones."""
        keys = await self._store.list_all()
        if await self._restore_missing_rows(keys, mode):
            keys = await self._store.list_all()
        self._find_unnamed_keks(keys)
        self._ids_wrapped_locally = frozenset(key.id for key in keys if key.wrapped.kek == LOCAL_KEK)
        self._ids_wrapped_locally_ever |= self._ids_wrapped_locally
        in_use = self._active.id if self._active else None  # which may be another instance's retired one by now
        for key in keys:
            if key.status in _STATUSES_UNWRAPPED_FIRST or key.id == in_use:
                await self._cache.unwrap(key, mode, self._wrapping)
        usable = {key.id for key in keys if self._cache.is_usable(key)}
        self._pending = tuple(key.id for key in keys if key.status is DataKeyStatus.PENDING and key.id in usable)
        if self._active and self._active.id not in usable:
            self._active = None
        stored = next((key for key in keys if key.status is DataKeyStatus.ACTIVE), None)
        if (
            stored
            and stored.id in usable
            and not (mode is CryptoMode.KMS and stored.id in self._ids_wrapped_locally_ever)
        ):
            self._active = self._cache[stored.id]
        elif mode is CryptoMode.ENV and self._active:
            pass  # keep the key in memory: replacing another instance's key, which KMS wraps, would help nobody
        elif not await self._create_active_key(mode, expected_active=stored):
            await self._use_keys(mode)  # another process was faster: use its key

    def _find_unnamed_keks(self, keys: Sequence[DataKey]) -> None:
        """Logs each once."""
        by_kek = Counter(key.wrapped.kek for key in keys)
        found = {kek for kek in by_kek if kek != LOCAL_KEK and self._wrapping.find_key(kek) is None}
        for kek in sorted(found - self._unnamed_keks.keys()):
            log.warning(
                "data keys are wrapped by a KMS key that neither kms nor previous_kms names",
                kek=kek,
                data_keys=by_kek[kek],
                hint="add it to previous_kms",
            )
        self._unnamed_keks = {kek: by_kek[kek] for kek in found}

    async def _restore_missing_rows(self, keys: Sequence[DataKey], mode: CryptoMode) -> bool:
        """Whether rows were put back that the database lost: by an older snapshot, or a replica that lagged behind."""
        stored = next((key for key in keys if key.status is DataKeyStatus.ACTIVE), None)
        lost = self._cache.find_missing_rows(keys)
        for row in lost:
            was_active = self._active is not None and row.id == self._active.id
            is_newest = was_active and (stored is None or stored.created_at < row.created_at)
            try:
                put_back = await self._insert(row, expected_active=stored, active=is_newest)
            except (RetiredVersionError, LocalKeyError):  # nothing may be wrapped as it was
                wrapped = await self._wrap(mode, self._cache[row.id])
                put_back = await self._insert(replace(row, wrapped=wrapped), expected_active=stored, active=is_newest)
            if put_back:
                self.restored_count += 1
                self._restored_at[row.id] = self._clock()
                log.warning("missing data key row restored", data_key=row.id)
        return bool(lost)

    async def _insert(self, row: DataKey, *, expected_active: DataKey | None, active: bool) -> bool:
        return await (self._activate(row, expected_active) if active else self._store.restore_row(row))

    async def _activate(self, row: DataKey, expected_active: DataKey | None) -> bool:
        try:
            return await self._store.activate(
                row, expected_active=expected_active, local_fingerprint=self._local.fingerprint
            )
        except OtherLocalKeyError:
            self._local.reject()
            raise LocalKeyError(f"no data key can be made, {self._local.missing_reason}") from None

    async def _load_key(self, data_key_id: str) -> None:
        stored = await self._store.find(data_key_id)
        try:
            if stored:
                await self._cache.unwrap(stored, self.mode, self._wrapping)
        except KmsError as error:
            raise KeyUnavailableError(f"its data key {data_key_id} cannot be unwrapped: KMS: {error.label}") from None

    async def _create_active_key(self, mode: CryptoMode, *, expected_active: DataKey | None) -> bool:
        """Stores an active data key before it is used; False if `expected_active` is no longer active."""
        new = UnwrappedKey(uuid.uuid4().hex, os.urandom(KEY_BYTES))
        wrapped = await self._wrap(mode, new)
        created_at = datetime.fromtimestamp(self._clock(), UTC)
        row = DataKey(new.id, DataKeyStatus.ACTIVE, wrapped, compute_fingerprint(new.secret), created_at)
        if not await self._activate(row, expected_active):
            return False
        log.info("active data key created", data_key=new.id, kek=wrapped.kek, kek_version=wrapped.kek_version)
        self._cache.add(new, row)
        self._active = new
        return True

    async def _wrap(self, mode: CryptoMode, key: UnwrappedKey) -> WrappedKey:
        if mode is CryptoMode.KMS:
            return await self._wrapping.wrap(key.id, key.secret)
        self._ids_wrapped_locally_ever.add(key.id)
        return WrappedKey(self._local.wrap(key.secret, build_wrapping_aad(key.id)), LOCAL_KEK, LOCAL_KEK_VERSION)

    def set_mode(self, mode: CryptoMode, reason: str | None, error: str | None) -> None:
        """Stores the outcome of a check; logs a change once. `error` may name keys and goes to the log only."""
        if (mode, self.is_ready) != self._logged_state:
            self._logged_state = (mode, self.is_ready)
            self.initialised_at = self._clock()
        elif reason == self.reason:
            return
        self.mode, self.reason = mode, reason
        log_change = log.warning if reason else log.info
        log_change("crypto mode changed", mode=mode.value, ready=self.is_ready, reason=reason, error=error)


def _format_list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return ", ".join(items[:_MAX_NAMED]) + more


async def _ignore_results(_outcomes: Sequence[tuple[DataKey, None]]) -> None:
    pass
