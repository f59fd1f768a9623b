"""The commands that only read: plans, the latest rotation, key usage, verification, and the check of a backup.

`retire` and `destroy` count the other keyrings of the same KMS key here. They hold the lease of each meanwhile, so that
no other runner rotates or rolls back there between count and end. A keyring that does not answer may need any version.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

from services.rotator.backups import BackupError, SummaryBuilder, compare_with_keyring, read_pages, read_whole_backup
from services.rotator.drivers.registry import DriverSettings, open_driver
from services.rotator.plan import build_plan, describe_unfinished, get_next_commands, is_unfinished
from services.rotator.report import (
    BackupReport,
    CommandOutcome,
    CommandReport,
    OtherKeyringUsage,
    PreviousKey,
    RotatorError,
    StepProgress,
    format_count,
)
from services.rotator.session import CommandSession, hold_lease
from services.rotator.steps import read_usable_key
from services.rotator.verification import find_own_problems, find_unwrap_failures, verify_with_retries
from shared.keyring.administration import (
    Administration,
    AdministrationError,
    KeyUsage,
    Problem,
    RotationType,
    list_pages,
)
from shared.kms.port import KeyDescription, KmsError, ProtectedResources
from shared.kms.registry import normalise_key_name

_MAX_OLDER_VERSIONS: Final = 10
"""That a plan asks the provider's inventory for."""


class LeasedKeyring(NamedTuple):
    """A further keyring, while nobody else changes it."""

    name: str
    usage: KeyUsage
    administration: Administration


async def count_usage(session: CommandSession) -> tuple[OtherKeyringUsage, ...]:
    """What each other keyring needs, or why it does not say so."""
    return tuple([await _count_keyring_usage(session, driver) for driver in session.settings.other_keyrings or ()])


async def _count_keyring_usage(session: CommandSession, driver: DriverSettings) -> OtherKeyringUsage:
    try:
        kms, previous = session.settings.kms, session.settings.previous_kms
        async with open_driver(driver, kms, previous, caller=session.caller) as administration:
            return OtherKeyringUsage(name=driver.location, census=await administration.count_key_usage())
    except AdministrationError as error:
        return OtherKeyringUsage(name=driver.location, error=str(error))


@asynccontextmanager
async def lease_other_keyrings(session: CommandSession) -> AsyncIterator[Sequence[LeasedKeyring]]:
    """The other keyrings, with the lease of each while the body runs.

    Raises:
        RotatorError: nobody has said which there are, or one cannot be reached, is being changed, or has a rotation
            that is not finished.
    """
    settings, leased = session.settings, list[LeasedKeyring]()
    if settings.other_keyrings is None:
        raise RotatorError(
            "which other keyrings this KMS key wraps is not known, and nothing was changed. Add `other_keyrings` with "
            "their drivers to the configuration, or `other_keyrings: []` where there are none",
            "census",
        )
    async with AsyncExitStack() as stack:
        for driver in settings.other_keyrings:
            try:
                opened = open_driver(driver, settings.kms, settings.previous_kms, caller=session.caller)
                administration = await stack.enter_async_context(opened)
                await stack.enter_async_context(hold_lease(administration, settings.lease, session.caller))
                leased.append(await _count_if_idle(administration, driver.location))
            except AdministrationError as error:
                raise RotatorError(
                    f"the other keyring {driver.location} cannot be read, so it may need any version: {error}; nothing "
                    "was changed",
                    "census",
                ) from None
        yield leased


async def _count_if_idle(administration: Administration, name: str) -> LeasedKeyring:
    latest = await administration.get_progress()
    if latest is not None and is_unfinished(latest):  # a rollback would need the version
        raise RotatorError(f"in the other keyring {name} {describe_unfinished(latest)}; nothing was changed", "census")
    return LeasedKeyring(name, await administration.count_key_usage(), administration)


async def show_plans(session: CommandSession, types: tuple[RotationType, ...], command: str = "plan") -> CommandReport:
    """What a run of each of these types would do. Raises RotatorError, AdministrationError."""
    settings, administration = session.settings, session.administration
    types = tuple(each for each in types if each in settings.driver.rotation_types)
    key = await read_usable_key(session.kms, settings.kms_timeout, command)
    primary = str(key.primary_version)
    usage, latest = await administration.count_key_usage(), await administration.get_progress()
    plans = tuple(
        build_plan(
            each,
            usage,
            key=settings.kms.key_name,
            primary=primary,
            min_age=settings.new_dek_min_age,
            has_own_keys=settings.driver.has_own_keys,
        )
        for each in types
    )
    dry_runs = [await administration.dry_run(each.type, primary) for each in plans if each.data_keys]
    due = [f"run --type {each.type}" for each in plans if each.data_keys]
    others = await count_usage(session)
    next_commands = tuple(due)
    sentence = "nothing was changed"
    if latest is not None and is_unfinished(latest):
        sentence, next_commands = describe_unfinished(latest), get_next_commands(latest)
    return CommandReport(
        command=command,
        outcome=CommandOutcome.DONE if due else CommandOutcome.NOTHING_TO_DO,
        summary=sentence,
        next_commands=next_commands,
        plans=plans,
        other_keyrings=others,
        previous_keys=await _find_previous_keys(session, usage, others),
        protected=await _find_protected_resources(session, key) if RotationType.REWRAP_KEK in types else (),
        problems=tuple(problem for progress in dry_runs for problem in progress.problems),
    )


async def _find_previous_keys(
    session: CommandSession, usage: KeyUsage, others: Sequence[OtherKeyringUsage]
) -> tuple[PreviousKey, ...]:
    """What still needs each key of `previous_kms`. Raises BackupError, AdministrationError.

    Where a data key is not unwrapped by the key that it names, a previous key of another name may be the right one.
    """
    names = dict.fromkeys((*(each.key_name for each in session.settings.previous_kms), *usage.previous_keks))
    backups = await asyncio.to_thread(session.backups.list_backups) if names else []
    keyrings = [("", usage), *((f" in {each.name}", each.census) for each in others)]
    found = []
    for kek in names:
        needed_by = [f"the backup {file}" for file, header in backups if kek in (header.kek, *header.other_keks)]
        for where, its in keyrings:
            versions = [each for each in its.versions if normalise_key_name(each.kek) == kek] if its else []
            if any(each.data_keys or each.records for each in versions):
                data_keys, records = (sum(getattr(each, of) for each in versions) for of in ("data_keys", "records"))
                needed_by.append(f"{format_count(data_keys, 'data key')} and {format_count(records, 'record')}{where}")
            if its is None or its.unknown_usage:
                needed_by.append(f"perhaps {its.unknown_usage if its else 'data keys that cannot be counted'}{where}")
        found.append(PreviousKey(kek=kek, needed_by=tuple(needed_by)))
    if all(each.needed_by for each in found):
        return tuple(found)
    perhaps = await _find_misnamed(session)
    return tuple(each if each.needed_by else PreviousKey(kek=each.kek, needed_by=perhaps) for each in found)


async def _find_misnamed(session: CommandSession) -> tuple[str, ...]:
    """A data key of each keyring that the key of its name does not unwrap, as a clause. Raises AdministrationError."""
    settings, found = session.settings, list[str]()

    async def search(administration: Administration, where: str = "") -> None:
        pages = list_pages(administration.list_backup_rows)
        try:
            failures = await find_unwrap_failures(pages, session.wrapping, has_own_keys=True)
        except KmsError as error:
            found.append(f"perhaps data keys{where}; KMS does not tell what it unwraps: {error.label}")
            return
        for failure in [each for each in failures if not each.is_foreign][:1]:
            found.append(
                f"perhaps data key {failure.id}{where}, which the key that it names does not unwrap: run verify"
            )

    await search(session.administration)
    for driver in settings.other_keyrings or ():
        if driver.has_own_keys:
            opened = open_driver(driver, settings.kms, settings.previous_kms, caller=session.caller)
            async with opened as administration:
                await search(administration, f" in {driver.location}")
    return tuple(found)


async def _find_protected_resources(session: CommandSession, key: KeyDescription) -> tuple[ProtectedResources, ...]:
    """Of the newest versions before the primary one, each of which a re-wrap may make superfluous."""
    found = list[ProtectedResources]()
    older = [each for each in key.list_older_versions() if each.state.may_have_ciphertexts]
    for version in older[-_MAX_OLDER_VERSIONS:]:
        found.append(await session.kms.find_protected_resources(version.id, timeout=session.settings.kms_timeout))
        if found[-1].problem:  # the others would have the same
            break
    return tuple(found)


async def show_status(session: CommandSession) -> CommandReport:
    """The latest rotation. Raises AdministrationError."""
    latest = await session.administration.get_progress()
    if latest is None:
        return CommandReport(
            command="status", outcome=CommandOutcome.DONE, summary="there was no rotation yet", next_commands=("plan",)
        )
    open_ = is_unfinished(latest)
    return CommandReport(
        outcome=CommandOutcome.DONE,
        summary=describe_unfinished(latest) if open_ else f"rotation {latest.rotation_id} is {latest.state}",
        next_commands=get_next_commands(latest) if open_ else (),
        rotation=latest,
        problems=latest.problems,
    )


async def show_key_usage(session: CommandSession) -> CommandReport:
    """Which data keys and how many records need which version, in all keyrings. Raises AdministrationError."""
    counted, elsewhere = await session.administration.count_key_usage(), await count_usage(session)
    keys, records = (sum(getattr(each, of) for each in counted.versions) for of in ("data_keys", "records"))
    sentence = f"{format_count(keys, 'data key')}, {format_count(records, 'record')}"
    if session.settings.other_keyrings is None:
        sentence += "; which other keyrings this KMS key wraps is not known: set `other_keyrings`"
    usages = [("", counted), *((f" in {each.name}", each.census) for each in elsewhere if each.census)]
    for where, its in usages:
        if its.unknown_usage:
            sentence += f"; {its.unknown_usage}{where} may need any version"
    silent = [each.name for each in elsewhere if each.census is None]
    if silent:
        sentence += f"; what {', '.join(silent)} needs is not known"
    return CommandReport(
        outcome=CommandOutcome.FAILED if silent else CommandOutcome.DONE,
        summary=sentence,
        next_commands=("census",) if silent else (),
        census=counted,
        other_keyrings=elsewhere,
    )


async def run_verification(session: CommandSession, *, full: bool) -> CommandReport:
    """Whether everything can be read; `full` reads every record. Raises AdministrationError."""
    total = sum(each.data_keys for each in (await session.administration.count_key_usage()).versions)
    found = await verify_with_retries(
        session,
        "full" if full else session.settings.verify_mode,
        lambda done: session.progress.report_progress(StepProgress("verify", done, total, done, max(done, total))),
    )
    problems = find_own_problems(found, session.settings.driver)
    return CommandReport(
        outcome=CommandOutcome.FAILED if problems else CommandOutcome.DONE,
        summary=f"{len(problems)} cannot be read; they are named below" if problems else "everything can be read",
        next_commands=("status", "verify") if problems else (),
        verification=found,
        problems=found.problems,
    )


async def check_backup(session: CommandSession, name: str) -> CommandReport:
    """Whether a backup can be restored. Raises BackupError, AdministrationError."""
    latest, usage = await session.administration.get_progress(), await session.administration.count_key_usage()
    backups = latest.backups if latest else ()
    file = await asyncio.to_thread(session.backups.find, name, usage.keyring, backups)
    summary = await read_whole_backup(file, session.wrapping)
    problems, has_own_keys = list[Problem](), session.settings.driver.has_own_keys
    if has_own_keys:
        problems = await compare_with_keyring(file, session.administration, session.wrapping)
    pages = read_pages(file, session.wrapping, SummaryBuilder())
    try:
        problems += await find_unwrap_failures(pages, session.wrapping, has_own_keys=has_own_keys)
    except KmsError as error:
        raise BackupError(f"KMS does not tell whether the backup {file} can be restored: {error}") from None
    return CommandReport(
        outcome=CommandOutcome.FAILED if problems else CommandOutcome.DONE,
        summary="the backup can be read; what is named below differs, or cannot be restored"
        if problems
        else "the backup can be restored",
        next_commands=("verify", "status") if problems else (),
        backup=BackupReport(file=str(file), **summary.model_dump()),
        problems=tuple(problems),
    )
