"""Whether a service's admin API does what the rotator needs: checks for a service that offers its own.

They take the lease, re-wrap one data key at most, and roll that back. What stays is a rotation in the journal that is
rolled back. Nothing is retired, and no new data key is made: neither could be undone.
"""

import asyncio
import secrets
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from services.rotator.config import RotatorSettings
from services.rotator.drivers.registry import open_driver
from services.rotator.plan import describe_unfinished, is_unfinished
from services.rotator.report import RotatorError
from services.rotator.session import describe_holder
from services.rotator.verification import decrypt_row, find_own_problems, verify_by_pages
from shared.check import Check, CheckError, CheckResult, run_checks
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    Administration,
    AdministrationError,
    JournalEntry,
    JournalStep,
    K,
    KeyInfo,
    Lease,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
    list_pages,
)
from shared.keyring.model import DataKeyStatus
from shared.kms.port import KmsError, KmsKey
from shared.kms.registry import connect_key

INTRODUCTION: Final = (
    "takes the lease, re-wraps one data key at most, and rolls that back; the journal keeps the rotation, rolled back"
)
_DOCUMENT: Final = "docs/admin-api.openapi.yaml"
_LEASE_SECONDS: Final = 60.0
_MAX_CALLS: Final = 1000
_UNUSED_VERSION: Final = "keypulse-conformance"
"""A version that no key has: where a service retires it without the lease, nothing is lost."""


async def run_conformance(settings: RotatorSettings) -> list[CheckResult]:
    """Runs every check in order. Raises RotatorError where the driver leads to no admin API."""
    driver = settings.driver
    if driver.kind not in {"admin_api", "command"}:
        raise RotatorError(f"the driver {driver.kind} uses no admin API; expected admin_api or command", "verify")
    kms = connect_key(settings.kms)
    try:
        async with open_driver(driver, settings.kms, caller=describe_holder()) as administration:
            suite = _Suite(settings, administration, kms)
            try:
                return await run_checks(suite.list_checks())
            finally:
                await suite.undo()
    finally:
        await kms.close()


@dataclass
class _Suite:
    settings: RotatorSettings
    administration: Administration
    kms: KmsKey
    keys: tuple[KeyInfo, ...] = ()
    fingerprint: str = ""
    lease: Lease | None = None
    rotation_id: str = field(
        default_factory=lambda: f"conformance-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    )
    may_be_rotating: bool = False
    """A rotation of ours may be there that is not rolled back."""

    def list_checks(self) -> list[Check]:
        checks: list[tuple[str, Callable[[], Awaitable[str]], str, str | None]] = [
            ("keys", self.check_keys, "GET keys", None),
            ("pages", self.check_pages, "GET keys with after and limit", "keys"),
            ("key usage", self.check_usage, "GET census", "keys"),
            ("progress", self.check_progress, "GET rotations/latest and rotations/{rotation_id}", "keys"),
            ("backup", self.check_backup, "POST backup", "keys"),
            ("unwrap", self.check_unwrap, "wrapped, aad and fingerprint of POST backup", "backup"),
            ("dry run", self.check_dry_run, "POST rotate with dry_run", "keys"),
            ("verify", self.check_verify, "POST verify, by pages", "keys"),
            ("lease", self.check_lease, "POST lease and release", "keys"),
            ("nothing without the lease", self.check_other_token, "token of POST rotate, rollback and others", "lease"),
            ("journal", self.check_journal, "POST journal", "lease"),
            ("restore", self.check_restore, "POST restore of rows as they are", "backup"),
            ("reload", self.check_reload, "POST reload", "keys"),
            ("rotate", self.check_rotate, "POST rotate", "lease"),
            ("rollback", self.check_rollback, "POST rollback", "rotate"),
            ("all as before", self.check_unchanged, "GET keys and POST verify after all of these", "lease"),
        ]
        if self.settings.driver.kind == "admin_api":
            checks.insert(1, ("wrong token", self.check_wrong_token, "Authorization: Bearer", "keys"))
        return [Check(name, _translate(run, about), depends_on) for name, run, about, depends_on in checks]

    async def undo(self) -> None:
        """Rolls our rotation back and releases the lease, whatever failed. Raises nothing."""
        if self.lease is None:
            return
        with suppress(AdministrationError, CheckError):
            if self.may_be_rotating:
                await self._roll_back()
        with suppress(AdministrationError):
            await self.administration.release_lease(self.lease.token)

    async def check_keys(self) -> str:
        keys = await self._list_keys()
        _expect(keys, "the service has no data key; start it, and let it encrypt something")
        active = [key for key in keys if key.status is DataKeyStatus.ACTIVE]
        _expect(len(active) <= 1, f"{len(active)} data keys are active, expected one at most")
        _expect(all(len(key.fingerprint) >= 32 for key in keys), "a fingerprint is shorter than 32 hexadecimal digits")
        _expect(all(key.created_at.tzinfo for key in keys), "a created_at has no time zone")
        self.keys = keys
        return f"{len(keys)} data keys"

    async def check_wrong_token(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "token")
            await asyncio.to_thread(file.write_text, secrets.token_urlsafe(24))
            driver = self.settings.driver.model_copy(update={"token_file": file})
            async with open_driver(driver, self.settings.kms) as other_caller:
                await _expect_refusal(other_caller.list_keys(limit=1), "a wrong token is accepted")
        return "is refused"

    async def check_pages(self) -> str:
        first = await self.administration.list_keys(limit=1)
        _expect(list(first) == list(self.keys[:1]), "with limit=1 it is not the first data key")
        following = await self.administration.list_keys(after=self.keys[0].id)
        expected = self.keys[1 : 1 + MAX_PAGE_SIZE]
        _expect(tuple(following) == expected, "after=ID does not go on behind it")
        end = await self.administration.list_keys(after=self.keys[-1].id)
        _expect(not end, "there are data keys after the last one")
        return "go on where the last one ended"

    async def check_usage(self) -> str:
        usage = await self.administration.count_key_usage()
        key = self.settings.kms.key_name
        _expect(usage.keyring, "keyring is missing: an id that stays, by which a backup names its keyring")
        _expect(usage.kek == key, f"kek is {usage.kek or 'missing'}, and `kms.key` is {key}")
        counted = {(each.kek, each.kek_version): each.data_keys for each in usage.versions if each.data_keys}
        listed = Counter((each.kek, each.kek_version) for each in self.keys)
        _expect(counted == listed, f"versions count {sum(counted.values())} data keys, other ones than keys lists")
        active = next((each.id for each in self.keys if each.status is DataKeyStatus.ACTIVE), None)
        _expect(usage.active == active, "active is not the data key whose status is active")
        _expect(usage.counted_at and usage.counted_at.tzinfo, "counted_at is missing, or has no time zone")
        return "counts what keys lists"

    async def check_progress(self) -> str:
        unknown = await self.administration.get_progress(self.rotation_id)
        _expect(unknown is None, "a rotation that was never begun is not answered with 404")
        latest = await self.administration.get_progress()
        if latest is not None and is_unfinished(latest):
            raise CheckError(describe_unfinished(latest), "resume it or roll it back, then check again")
        return f"the latest rotation is {latest.state}" if latest else "no rotation yet"

    async def check_backup(self) -> str:
        rows = await _list_all(self.administration.list_backup_rows)
        stored = [(row.id, row.status, row.kek, row.kek_version, row.fingerprint) for row in rows]
        listed = [(key.id, key.status, key.kek, key.kek_version, key.fingerprint) for key in self.keys]
        _expect(stored == listed, "its rows are not the data keys that keys lists")
        return f"{len(rows)} rows"

    async def check_unwrap(self) -> str:
        rows = await _list_all(self.administration.list_backup_rows)
        for row in {row.kek_version: row for row in rows if row.kek == self.settings.kms.key_name}.values():
            try:
                decrypted = await decrypt_row(row, self.kms, self.settings.kms_timeout)
            except ValueError:
                raise CheckError(f"{row.id}: wrapped is no base64, or aad no 0x and hexadecimal digits", "") from None
            except KmsError as error:
                raise CheckError(f"{row.id}: KMS does not unwrap it: {error}", "") from None
            is_same = row.has_fingerprint_of(decrypted.plaintext)
            _expect(is_same, f"{row.id}: the fingerprint is not HMAC-SHA256(data key, 'keypulse data key fingerprint')")
        return "KMS unwraps a data key of each version"

    async def check_dry_run(self) -> str:
        progress = await self.administration.dry_run(RotationType.REWRAP_KEK, None)
        _expect(progress.done == 0, "done is not 0")
        _expect(await self._list_keys() == self.keys, "it changed data keys")
        return f"{progress.total} data keys would be wrapped anew"

    async def check_verify(self) -> str:
        found = await verify_by_pages(self.administration, "sample")
        problems = find_own_problems(found, self.settings.driver)
        _expect(not problems, f"{len(problems)} cannot be read, such as {problems[0].id if problems else ''}")
        _expect(found.data_keys == len(self.keys), f"data_keys is {found.data_keys}, and keys lists {len(self.keys)}")
        _expect(found.fingerprint, "the last page has no fingerprint")
        self.fingerprint = found.fingerprint
        return f"{found.data_keys} data keys, {found.records} records"

    async def check_lease(self) -> str:
        lease = self.lease = await self.administration.acquire_lease(describe_holder(), _LEASE_SECONDS)
        other = self.administration.acquire_lease("another runner", _LEASE_SECONDS)
        await _expect_refusal(other, "two have the lease at the same time")
        await self.administration.release_lease(secrets.token_urlsafe(24))
        other = self.administration.acquire_lease("another runner", _LEASE_SECONDS)
        await _expect_refusal(other, "another token releases the lease")
        renewed = await self.administration.acquire_lease(describe_holder(), _LEASE_SECONDS, lease.token)
        _expect(renewed.token == lease.token, "a renewal has another token")
        _expect(renewed.expires_at >= lease.expires_at, "a renewal ends earlier")
        await self.administration.release_lease(lease.token)
        self.lease = await self.administration.acquire_lease(describe_holder(), _LEASE_SECONDS)
        return "one holder at a time"

    async def check_other_token(self) -> str:
        token, administration = secrets.token_urlsafe(24), self.administration
        self.may_be_rotating = True
        await _expect_refusal(administration.rotate(self._build_request(token)), "rotate does not check the token")
        self.may_be_rotating = False
        entry = JournalEntry(step=JournalStep.RELOAD, outcome=StepOutcome.SUCCEEDED)
        journal = administration.add_journal_entry(self.rotation_id, token, entry)
        await _expect_refusal(journal, "journal does not check the token")
        await _expect_refusal(administration.rollback(self.rotation_id, token), "rollback does not check the token")
        retire = administration.retire_version(_UNUSED_VERSION, token)
        await _expect_refusal(retire, "retire does not check the token")
        _expect(await self._list_keys() == self.keys, "data keys were changed")
        return "each change needs its token"

    async def check_journal(self) -> str:
        defective = JournalEntry(step=JournalStep.BACKUP, outcome=StepOutcome.SUCCEEDED)
        entry = self.administration.add_journal_entry(self.rotation_id, self._token, defective)
        await _expect_refusal(entry, "an entry of a backup without its name is accepted")
        return "an entry that could not be read again is refused"

    async def check_restore(self) -> str:
        rows = (await self.administration.list_backup_rows(limit=1))[:1]
        changed = await self.administration.restore(rows, self._token)
        _expect(changed == 0, f"changed is {changed}, expected 0")
        return "changes no row that is as in the backup"

    async def check_reload(self) -> str:
        await self.administration.reload_instances()
        return "is answered"

    async def check_rotate(self) -> str:
        self.may_be_rotating = True
        request = self._build_request(self._token)
        began = await self.administration.rotate(request)
        _expect(began.rotation_id == self.rotation_id, f"rotation_id is {began.rotation_id}, not {self.rotation_id}")
        _expect(began.type is RotationType.REWRAP_KEK, f"type is {began.type}")
        _expect(began.done <= 1, f"a batch_size of 1 did {began.done} data keys")
        by_id = await self.administration.get_progress(self.rotation_id)
        _expect(by_id and by_id.rotation_id == self.rotation_id, "rotations/{rotation_id} does not have it")
        latest = await self.administration.get_progress()
        _expect(latest and latest.rotation_id == self.rotation_id, "rotations/latest is another one")
        fingerprints = {key.id: key.fingerprint for key in await self._list_keys()}
        same = fingerprints == {key.id: key.fingerprint for key in self.keys}
        _expect(same, "a data key has another fingerprint, or is gone")
        return f"{began.done} of {began.total} data keys"

    async def check_rollback(self) -> str:
        progress = await self._roll_back()
        repeated = await self.administration.rollback(self.rotation_id, self._token)
        _expect(repeated.state is RotationState.ROLLED_BACK, "a second call does not leave it as it is")
        rotate = self.administration.rotate(self._build_request(self._token))
        await _expect_refusal(rotate, "a rotation goes on after it was rolled back")
        _expect(not progress.problems, f"{len(progress.problems)} data keys are left out")
        return "the rotation is rolled back"

    async def check_unchanged(self) -> str:
        keys = await self._list_keys()
        changed = [key.id for key in keys if key not in self.keys]
        named = ", ".join(changed[:3]) or "one that is gone"
        _expect(keys == self.keys, f"data keys are not as before, such as {named}")
        found = await verify_by_pages(self.administration, "sample")
        _expect(not find_own_problems(found, self.settings.driver), "not everything can be read")
        _expect(found.fingerprint == (self.fingerprint or found.fingerprint), "the fingerprint of all is another one")
        return f"{len(keys)} data keys"

    @property
    def _token(self) -> str:
        return self.lease.token if self.lease else ""

    def _build_request(self, token: str) -> RotateRequest:
        type_, caller = RotationType.REWRAP_KEK, describe_holder()
        return RotateRequest(rotation_id=self.rotation_id, type=type_, token=token, caller=caller, batch_size=1)

    async def _roll_back(self) -> RotationProgress:
        for _ in range(_MAX_CALLS):
            progress = await self.administration.rollback(self.rotation_id, self._token)
            if progress.state is RotationState.ROLLED_BACK:
                self.may_be_rotating = False
                return progress
        raise CheckError(f"after {_MAX_CALLS} calls the rotation is not rolled back", "")

    async def _list_keys(self) -> tuple[KeyInfo, ...]:
        return await _list_all(self.administration.list_keys, "after=ID")


async def _list_all(list_rows: Callable[[str], Awaitable[Sequence[K]]], parameter: str = "after") -> tuple[K, ...]:
    rows: list[K] = []
    async for page in list_pages(list_rows):
        _expect(not rows or page[0].id != rows[0].id, f"{parameter} is passed over: the first page comes again")
        rows += page
    return tuple(rows)


def _expect(condition: object, error: str) -> None:
    if not condition:
        raise CheckError(error, "")


async def _expect_refusal(call: Awaitable[Sequence[object] | object], error: str) -> None:
    try:
        await call
    except RefusedError:
        return
    raise CheckError(f"{error}; expected HTTP 401 or 409", "")


def _translate(run: Callable[[], Awaitable[str]], about: str) -> Callable[[], Awaitable[str]]:
    """Each failure names the part of the document that says what is expected."""

    async def check() -> str:
        try:
            return await run()
        except (CheckError, AdministrationError) as error:
            sentence = error.error if isinstance(error, CheckError) else str(error)
            hint = (error.hint if isinstance(error, CheckError) else "") or f"see {about} in {_DOCUMENT}"
            raise CheckError(sentence, hint) from None

    return check
