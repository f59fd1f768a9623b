"""What wraps and unwraps the data keys, which one is active, and the mode: `kms`, or `env` while KMS fails.

KMS is checked with a real round trip: once at the start, then at each interval. What a check finds decides the mode:

- It succeeds: every data key that can be unwrapped is, those wrapped by the local key are re-wrapped by KMS, and then
  the mode is `kms`.
- It fails at the start, or for the second time in a row: the mode is `env`. One failure may be a lost packet or a slow
  answer, and would page somebody; a start cannot wait for a second try.

A data key, once unwrapped, stays in memory, so an outage stops neither reads nor writes. A new active key is made only
where the active one cannot be used (none is there yet, or a restart in an outage, or a KMS version that is disabled or
destroyed); it is wrapped by what the mode says, and its predecessor is retired: it still decrypts once it can be
unwrapped again. No data key is ever removed here.
"""

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import structlog

from services.backend.local_key import LocalKey
from services.backend.sealing import UsableKey
from shared.cancelled import task_is_cancelled
from shared.contract import CryptoMode
from shared.keyring.database import DatabaseError
from shared.keyring.instances import Heartbeat
from shared.keyring.model import KEY_BYTES, LOCAL_KEK, DataKey, Status, Wrapped, fingerprint, wrapping_aad
from shared.keyring.store import KeyStore, RetiredVersionError
from shared.keyring.wrapping import UnwrapError, Wrapping
from shared.kms.provider import KeyProvider, KmsError
from shared.kms.reason import Reason

_FAILURES_TO_FALL_BACK: Final = 2

log = structlog.get_logger(__name__)


class KeyUnavailableError(Exception):
    """A data key cannot be used right now; the message says why, and holds no key material."""


class Keyring:
    """The data keys in memory. What is active and the mode change in `check` and `reload`, one at a time."""

    def __init__(
        self,
        store: KeyStore,
        local: LocalKey,
        kms: KeyProvider,
        heartbeat: Heartbeat,
        *,
        kek: str,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        """Reads nothing yet.

        Args:
            store: the keyring.
            local: wraps while KMS fails.
            kms: wraps else.
            heartbeat: is told after each check and each reload which pending data keys are held here.
            kek: full name of `kms`'s key.
            timeout: of each call to `kms`, in seconds.
            clock: unix time.
        """
        self._store = store
        self._heartbeat = heartbeat
        self._local = local
        self._wrapping = Wrapping(kms, kek, timeout, local)
        self._clock = clock
        self._usable: dict[str, UsableKey] = {}
        self._unusable: dict[str, str] = {}  # id → why
        self._active: UsableKey | None = None
        self._pending: tuple[str, ...] = ()
        self._failures = 0
        self._changing = asyncio.Lock()
        self._settled: tuple[CryptoMode, bool] | None = None
        self.mode = CryptoMode.ENV
        self.reason: str | None = "KMS has not answered yet"
        """Why the mode is `env` or no data key can be used; None while all is well."""
        self.initialised_at = clock()
        """When mode or readiness last changed, or the start; unix time."""

    @property
    def ready(self) -> bool:
        """Whether records can be encrypted: false only while no data key can be used."""
        return self._active is not None

    @property
    def unusable(self) -> Mapping[str, str]:
        """Why data keys cannot be unwrapped here, by their ids."""
        return self._unusable

    def active(self) -> UsableKey:
        """The key for new records. Raises KeyUnavailableError."""
        if self._active is None:
            raise KeyUnavailableError(f"no data key can be used: {self.reason}")
        return self._active

    async def key(self, data_key_id: str) -> UsableKey:
        """The key that a record was encrypted with; one that another instance made since is looked for at once.

        Raises:
            KeyUnavailableError: it is not there, or cannot be unwrapped.
            DatabaseError: the keyring cannot be read.
        """
        if data_key_id not in self._usable and data_key_id not in self._unusable:
            await self._meet(data_key_id)
        try:
            return self._usable[data_key_id]
        except KeyError:
            why = self._unusable.get(data_key_id, "it is not in the keyring")
            raise KeyUnavailableError(f"its data key {data_key_id} cannot be unwrapped: {why}") from None

    async def watch(self, interval: float, checked: asyncio.Event) -> None:
        """Checks now and at each `interval` seconds, until it is cancelled; sets `checked` after the first time."""
        while True:
            try:
                await self.check()
            except DatabaseError as error:
                if not self.ready:
                    self.reason = f"the keyring's database cannot be used: {error}"
                log.warning("the keyring's database cannot be used; trying again", error=str(error), seconds=interval)
            except (Exception, asyncio.CancelledError):
                # A defect must not end the checks: nothing would bring KMS back. Nor must a library's CancelledError.
                if task_is_cancelled():
                    raise
                log.exception("the check of KMS failed in an unforeseen way; trying again", seconds=interval)
            checked.set()
            await asyncio.sleep(interval)

    async def check(self) -> None:
        """One round trip, and what follows from it. Raises DatabaseError; the next check goes on from there."""
        async with self._changing:
            try:
                await self._wrapping.wrap("check", os.urandom(KEY_BYTES))
                await self._use_keys(CryptoMode.KMS)
            except RetiredVersionError as error:
                await self._failed(KmsError(Reason.KEY_DISABLED, str(error)))
            except KmsError as error:
                await self._failed(error)
            else:
                self._failures = 0
                self._settle(CryptoMode.KMS, None, None)
            await self._heartbeat.beat(self._pending)

    async def reload(self) -> None:
        """Reads the keyring again, now, because somebody changed it. Raises DatabaseError.

        What KMS says meanwhile decides nothing: that is for the checks.
        """
        async with self._changing:
            try:
                await self._use_keys(self.mode)
            except (KmsError, RetiredVersionError) as error:
                log.warning("the keyring was read, and KMS failed at it; the next check tries again", error=str(error))
            await self._heartbeat.beat(self._pending)

    async def _failed(self, error: KmsError) -> None:
        self._failures += 1
        if self.mode is CryptoMode.KMS and self._failures < _FAILURES_TO_FALL_BACK:
            log.warning("KMS failed a check; the next failure in a row makes the mode env", reason=str(error))
            return
        try:
            await self._use_keys(CryptoMode.ENV)
        finally:  # the mode is told even where the database fails as well
            self._settle(CryptoMode.ENV, f"KMS cannot be used: {error.reason}", error.detail)

    async def _use_keys(self, mode: CryptoMode) -> None:
        """Unwraps what can be unwrapped in `mode`, and sees to it that a usable key is active."""
        keys = await self._store.all()
        for key in keys:
            if key.id not in self._usable:
                await self._take(key, mode)
            if mode is CryptoMode.KMS and key.wrapped.kek == LOCAL_KEK and key.id in self._usable:
                wrapped = await self._wrapping.wrap(key.id, self._usable[key.id].secret)
                if await self._store.rewrap(key, wrapped):
                    log.info("data key re-wrapped by KMS", data_key=key.id, kek_version=wrapped.kek_version)
        self._pending = tuple(key.id for key in keys if key.status is Status.PENDING and key.id in self._usable)
        stored = next((key for key in keys if key.status is Status.ACTIVE), None)
        if stored and stored.id in self._usable:
            self._active = self._usable[stored.id]
        elif not await self._make_active(mode, instead_of=stored):
            await self._use_keys(mode)  # another process was faster: use its key

    async def _meet(self, data_key_id: str) -> None:
        stored = await self._store.find(data_key_id)
        try:
            if stored:
                await self._take(stored, self.mode)
        except KmsError as error:
            raise KeyUnavailableError(f"its data key {data_key_id} cannot be unwrapped: KMS: {error.reason}") from None

    async def _take(self, key: DataKey, mode: CryptoMode) -> None:
        try:
            self._usable[key.id] = UsableKey(key.id, await self._unwrap(key, mode))
            self._unusable.pop(key.id, None)
        except UnwrapError as error:
            if self._unusable.get(key.id) != str(error):
                log.warning(
                    "a data key cannot be unwrapped; its records cannot be read", data_key=key.id, why=str(error)
                )
            self._unusable[key.id] = str(error)

    async def _unwrap(self, key: DataKey, mode: CryptoMode) -> bytes:
        """The data key in clear. Raises UnwrapError, or KmsError where all of KMS is at fault."""
        refusal = self._wrapping.refusal(key.wrapped)
        if refusal is None and mode is CryptoMode.ENV and key.wrapped.kek != LOCAL_KEK:
            raise UnwrapError("it is wrapped by KMS, which cannot be used")
        return await self._wrapping.unwrap(key)

    async def _make_active(self, mode: CryptoMode, *, instead_of: DataKey | None) -> bool:
        """A new active data key, stored before it is used; False where `instead_of` is no longer the active one."""
        new = UsableKey(uuid.uuid4().hex, os.urandom(KEY_BYTES))
        if mode is CryptoMode.KMS:
            wrapped = await self._wrapping.wrap(new.id, new.secret)
        else:
            wrapped = Wrapped(self._local.wrap(new.secret, wrapping_aad(new.id)), LOCAL_KEK, 0)
        created_at = datetime.fromtimestamp(self._clock(), UTC)
        row = DataKey(new.id, Status.ACTIVE, wrapped, fingerprint(new.secret), created_at)
        if not await self._store.activate(row, instead_of=instead_of):
            return False
        log.info("new active data key", data_key=new.id, kek=wrapped.kek, kek_version=wrapped.kek_version)
        self._active = self._usable[new.id] = new
        return True

    def _settle(self, mode: CryptoMode, reason: str | None, detail: str | None) -> None:
        """Takes over a check's outcome; a change is told once. `detail` may name keys and goes to the log alone."""
        if (mode, self.ready) != self._settled:
            self._settled = (mode, self.ready)
            self.initialised_at = self._clock()
        elif reason == self.reason:
            return
        self.mode, self.reason = mode, reason
        tell = log.info if mode is CryptoMode.KMS else log.warning
        tell("crypto mode", mode=mode.value, ready=self.ready, reason=reason, detail=detail)
