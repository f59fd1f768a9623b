"""The end of a version of the KMS key, in two commands: `retire` disables it, `destroy` destroys it a month later.

In the time that the KMS gives, a destruction can be undone; Transit has none, and destroys at once.

Both refuse while anything that is known of needs the version: a data key, a record, a backup in the folder, in this
keyring or in one of the others that the KMS key wraps. A backup that only a journal knows of has to be confirmed. A
data key that cannot be read, or that the database lost, may need any version, and blocks both. So does one that the
primary version does not unwrap, whatever its row says. So does what the provider's own products protect, where its
inventory can be asked. Older backups of the service's whole database are not known;
`destroy` warns of them.
"""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.rotator.backups import may_be_wrapped_by, may_unwrap
from services.rotator.inspection import LeasedKeyring, lease_other_keyrings
from services.rotator.plan import refuse_unfinished
from services.rotator.report import CommandOutcome, CommandReport, RotatorError, format_count
from services.rotator.session import CommandSession
from services.rotator.steps import PROBE_AAD
from services.rotator.verification import find_unproven_rows
from shared.keyring.administration import AdministrationError, Lease
from shared.keyring.model import UNREADABLE_VERSION
from shared.kms.port import KeyDescription, KmsError, ProtectedResources, VersionState
from shared.kms.registry import may_be_same_key

MIN_DISABLED_DAYS: Final = 30
"""Between the two commands, at least: a program that still needs the version fails while it can be enabled again."""

_MAX_NAMED_BACKUPS: Final = 5
_MAX_NAMED_ROWS: Final = 3


async def retire_version(session: CommandSession, version: str, confirmed_backups: int = 0) -> CommandReport:
    """Disables a version. Raises RotatorError, AdministrationError, BackupError.

    `confirmed_backups`: how many backups, elsewhere or gone, nobody wants to restore: all that may need the version.
    """
    return await _run_with_all_leases(session, "retire", version, confirmed_backups, _disable_and_record)


async def destroy_version(session: CommandSession, version: str, confirmed_backups: int = 0) -> CommandReport:
    """Schedules a version's destruction. Arguments and errors are those of `retire_version`."""
    return await _run_with_all_leases(session, "destroy", version, confirmed_backups, _schedule_destruction)


@dataclass(frozen=True, slots=True)
class _VersionEnd:
    """One of the commands, while nobody else changes this keyring or another one."""

    session: CommandSession
    command: str
    version: str
    confirmed_backups: int
    lease: Lease
    others: Sequence[LeasedKeyring]
    key: KeyDescription
    protected: ProtectedResources

    async def get_retirement_time(self) -> datetime | None:
        retired = (await self.session.administration.count_key_usage()).retired_versions
        return next((each.retired_at for each in retired if each.kek_version == self.version), None)

    def check_state(self, *expected: VersionState) -> VersionState:
        """The version's state in KMS. Raises RotatorError if it is none of those `expected`."""
        found = self.key.find_version(self.version)
        if found is None:
            raise RotatorError(f"the KMS key has no version {self.version}", "census")
        if found.state not in expected:
            is_usable = found.state in {VersionState.USABLE, VersionState.DECRYPT_ONLY}
            next_command = "census"
            if self.command == "destroy" and is_usable:
                next_command = _format_command("retire", self.version)
            states = " or ".join(state.replace("_", " ") for state in expected)
            raise RotatorError(
                f"version {self.version} is {found.state_label}, expected {states}; nothing was changed", next_command
            )
        return found.state

    async def refuse_if_used(self) -> None:
        """Raises RotatorError if anything that is known of may need the version."""
        if self.protected.resources:
            raise RotatorError(
                f"version {self.version} protects {self.protected}; nothing was changed. Re-encrypt or delete these "
                "resources of the provider's products first; its inventory knows that up to days later",
                "census",
            )
        administration = self.session.administration
        keyrings = (LeasedKeyring("", await administration.count_key_usage(), administration), *self.others)
        for keyring in keyrings:
            self._refuse_if_used_by(keyring)
        await self._refuse_if_in_backups(keyrings)
        for keyring in keyrings:
            await self._refuse_unproven(keyring)

    async def _refuse_if_in_backups(self, keyrings: Sequence[LeasedKeyring]) -> None:
        session, version, kek = self.session, self.version, self.session.settings.kms.key_name
        local_backups = await asyncio.to_thread(session.backups.list_backups)
        recorded = {each.name: each.needs for keyring in keyrings for each in keyring.usage.backups}
        for file, header in local_backups:
            needs = recorded.get(file.name)
            if needs is not None and {*needs} != {*header.get_journal_needs()}:  # anybody may change the header
                raise RotatorError(
                    f"version {version} may be needed by the backup {file}, whose header contradicts the journal; "
                    "nothing was changed; remove that file once nobody needs it",
                    "census",
                )
            is_needed = any([await self._may_be_our_key(each) for each in header.other_keks])
            if not is_needed and (header.may_need(version) or self._has_other_version(header.needs)):
                timeout = session.settings.kms_timeout
                is_needed = header.kek == kek or await may_be_wrapped_by(session.kms, header, timeout=timeout)
            if is_needed:
                raise RotatorError(
                    f"version {version} is needed by the backup {file}; nothing was changed; remove that file once "
                    "nobody wants to restore it",
                    "census",
                )
        existing = {file.name for file, _ in local_backups}
        away = [
            each.name
            for keyring in keyrings
            for each in reversed(keyring.usage.backups)
            if each.name not in existing and (each.may_need(version) or self._has_other_version(each.needs or ()))
        ]
        if len(away) != self.confirmed_backups:
            raise RotatorError(
                f"version {version} is needed by {len(away)} backups that are not in {session.backups.folder}, the "
                f"latest {', '.join(away[:_MAX_NAMED_BACKUPS]) or 'none'}; nothing was changed. Nobody can restore "
                "them without it; if that is meant, confirm their number",
                f"{_format_command(self.command, version)} --confirm-backups {len(away)}",
            )

    async def _may_be_our_key(self, name: str) -> bool:
        """Whether the KMS key that a backup names may be ours; of two that are configured, ours is asked."""
        session = self.session
        if not may_be_same_key(session.settings.kms.key_name, name):
            return False
        other, timeout = session.wrapping.previous.get(name), session.settings.kms_timeout
        if other is None:
            return True
        try:
            made = await other.encrypt(b"", PROBE_AAD, timeout=timeout)
        except KmsError:
            return True
        return await may_unwrap(session.kms.decrypt(made.ciphertext, PROBE_AAD, timeout=timeout))

    async def _refuse_unproven(self, keyring: LeasedKeyring) -> None:
        """Raises RotatorError if a row is not proven to be wrapped by the primary version: it may be by any."""
        settings, prefix, next_command = self.session.settings, _get_prefix(keyring), _get_next_command(keyring)
        # A call of KMS for each row: of a hundred thousand it takes minutes.
        self.session.progress.report_step("verify")
        for list_rows in (keyring.administration.list_backup_rows, keyring.administration.list_excluded_rows):
            try:
                found = await find_unproven_rows(
                    list_rows,
                    self.session.kms,
                    settings.kms.key_name,
                    self.key.primary_version,
                    timeout=settings.kms_timeout,
                )
            except AdministrationError as error:
                raise RotatorError(f"{prefix}version {self.version} may be needed: {error}", next_command) from None
            if found:
                named = ", ".join(f"{problem.id} ({problem.error})" for problem in found[:_MAX_NAMED_ROWS])
                more = " and others" if len(found) > _MAX_NAMED_ROWS else ""
                raise RotatorError(
                    f"{prefix}version {self.version} may be needed by what the primary version "
                    f"{self.key.primary_version} does not provably wrap: {named}{more}; nothing was changed. Correct "
                    "the version of each row, and re-wrap it",
                    next_command,
                )

    def _has_other_version(self, needs: Sequence[str]) -> bool:
        """Whether one of `needs` is no version of the key: it may stand for any of them."""
        return any(self.key.find_version(each) is None for each in needs)

    def _refuse_if_used_by(self, keyring: LeasedKeyring) -> None:
        """Raises RotatorError if a data key or a record of a keyring needs the version, or may need it."""
        usage, kek, version = keyring.usage, self.session.settings.kms.key_name, self.version
        prefix, next_command = _get_prefix(keyring), _get_next_command(keyring)
        if not any(each.kek == kek for each in usage.versions):
            raise RotatorError(
                f"{prefix}no data key is wrapped by {kek}, so it is unknown who needs its versions; nothing was "
                "changed. Set `kms.key` to the service's own key, and list the other keyrings that it wraps in "
                "`other_keyrings`",
                "census",
            )
        for each in usage.versions:
            if (each.kek, each.kek_version) == (kek, version) and (each.data_keys or each.records):
                raise RotatorError(
                    f"{prefix}version {version} is needed by {format_count(each.data_keys, 'data key')} and "
                    f"{format_count(each.records, 'record')}; "
                    "nothing was changed",
                    next_command,
                )
            if (each.kek, each.kek_version) == (kek, UNREADABLE_VERSION):
                raise RotatorError(
                    f"{prefix}version {version} may be needed by {format_count(each.data_keys, 'data key')} whose "
                    "version cannot be read; nothing was changed; re-wrap them",
                    next_command,
                )
            if each.kek == kek and each.data_keys and self.key.find_version(each.kek_version) is None:
                raise RotatorError(
                    f"{prefix}version {version} may be needed by {format_count(each.data_keys, 'data key')} of version "
                    f"{each.kek_version!r}, which the KMS key does not have; nothing was changed; re-wrap them",
                    next_command,
                )
        for each in usage.excluded:
            needs = {version: "is", UNREADABLE_VERSION: "may be"}.get(each.kek_version)
            if each.kek == kek and needs:
                raise RotatorError(
                    f"{prefix}version {version} {needs} needed by {format_count(each.data_keys, 'row')} that "
                    "`driver.where` leaves out; nothing was changed. Let `where` include them, and rotate, or set "
                    "their wrapped key to NULL",
                    "census",
                )
        if usage.unknown_usage:
            raise RotatorError(
                f"{prefix}version {version} may be needed by {usage.unknown_usage}; nothing was changed. Correct each, "
                "or put it back, first: `verify` names data keys, the service's health check names all rows",
                next_command if keyring.name else "verify",
            )


async def _run_with_all_leases(
    session: CommandSession,
    command: str,
    version: str,
    confirmed_backups: int,
    run: Callable[[_VersionEnd], Awaitable[str]],
) -> CommandReport:
    try:
        async with session.hold_lease() as lease, lease_other_keyrings(session) as others:
            if command == "retire":
                refuse_unfinished(await session.administration.get_progress())  # a rollback would need the version
            timeout = session.settings.kms_timeout
            key = await session.kms.describe_key(timeout=timeout)
            protected = await session.kms.find_protected_resources(version, timeout=timeout)
            sentence = await run(
                _VersionEnd(session, command, version, confirmed_backups, lease, others, key, protected)
            )
    except KmsError as error:
        raise RotatorError(f"KMS: {error}", _format_command(command, version)) from None
    return CommandReport(
        outcome=CommandOutcome.DONE, summary=sentence, next_commands=("census",), protected=(protected,)
    )


async def _disable_and_record(end: _VersionEnd) -> str:
    session, version, timeout = end.session, end.version, end.session.settings.kms_timeout
    was_enabled = (
        end.check_state(VersionState.USABLE, VersionState.DECRYPT_ONLY, VersionState.DISABLED)
        is not VersionState.DISABLED
    )
    if end.key.primary_version == version:
        raise RotatorError(
            f"version {version} is the primary one, by which everything is wrapped; set another, and rotate",
            "run --type rewrap-kek",
        )
    await end.refuse_if_used()
    since = await end.get_retirement_time()
    if since and not was_enabled:
        return f"version {version} is retired since {since:%Y-%m-%d}, and disabled; nothing was changed"
    # Disabled before it is recorded: the days that `destroy_version` counts must be days without it.
    try:
        if was_enabled:
            await session.kms.set_version_enabled(version, is_enabled=False, timeout=timeout)
        await session.administration.retire_version(version, end.lease.token)
    except (KmsError, AdministrationError, asyncio.CancelledError) as error:  # a call without an answer may be done
        remaining = await _undo_disable(session, version, was_enabled=was_enabled)
        if isinstance(error, asyncio.CancelledError):
            session.progress.report_step("retire", remaining)
            raise
        raise RotatorError(
            f"version {version} is not retired: {error}; {remaining}", _format_command("retire", version)
        ) from None
    return (
        f"version {version} is disabled, and nothing can be wrapped by it any more; in {MIN_DISABLED_DAYS} days it can "
        "be destroyed, until then KMS can enable it again"
    )


async def _undo_disable(session: CommandSession, version: str, *, was_enabled: bool) -> str:
    """Enables the version again if `retire` disabled it; says how it is now."""
    if not was_enabled:
        return "it is disabled in KMS, as it was before"
    try:
        await session.kms.set_version_enabled(version, is_enabled=True, timeout=session.settings.kms_timeout)
    except KmsError as error:
        return f"it may be left disabled in KMS, which does not enable it: {error}"
    return "it is enabled again in KMS"


async def _schedule_destruction(end: _VersionEnd) -> str:
    version = end.version
    end.check_state(VersionState.DISABLED)
    since = await end.get_retirement_time()
    if since is None:
        raise RotatorError(f"version {version} is not retired", _format_command("retire", version))
    day = since + timedelta(days=MIN_DISABLED_DAYS)
    if end.session.get_database_time(end.lease) < day:
        raise RotatorError(
            f"version {version} is retired since {since:%Y-%m-%d}; it can be destroyed from {day:%Y-%m-%d} on, after "
            f"{MIN_DISABLED_DAYS} days",
            "census",
        )
    await end.refuse_if_used()
    scheduled = await end.session.kms.schedule_destruction(version, timeout=end.session.settings.kms_timeout)
    if scheduled.state is VersionState.DESTROYED:
        until = "is destroyed, at once and for good: KMS cannot restore it"
    elif scheduled.destroy_at is None:
        until = f"is {scheduled.state_label}; KMS gives no date until which it can be restored"
    else:
        at = datetime.fromtimestamp(scheduled.destroy_at, UTC)
        until = f"will be destroyed at {at:%Y-%m-%d %H:%M} UTC; until then KMS can restore it"
    return (
        f"version {version} {until}. An older backup of the database, from before {since:%Y-%m-%d}, may hold data "
        "keys that only this version unwraps: then nobody can read its records any more"
    )


def _get_prefix(keyring: LeasedKeyring) -> str:
    return f"in the other keyring {keyring.name} " if keyring.name else ""


def _get_next_command(keyring: LeasedKeyring) -> str:
    return "census" if keyring.name else "run --type rewrap-kek"


def _format_command(command: str, version: str) -> str:
    quoted = shlex.quote(version)
    return f"{command} {quoted} --confirm {quoted}"
