"""What a rotation would do, and whether the latest one is finished. Pure: the key usage and the journal come in."""

from datetime import timedelta
from typing import Final

from services.rotator.report import Plan, RotatorError, describe_done, format_count
from shared.backend_contract import MAX_DATA_KEY_ENCRYPTIONS
from shared.keyring.administration import (
    JournalStep,
    KeyUsage,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
)
from shared.keyring.model import LOCAL_KEK

_HINT: Final = "shorten `new_dek_min_age` where it must be replaced now"


def is_unfinished(latest: RotationProgress | None) -> bool:
    """Whether a rotation is unfinished: it runs or was interrupted, or its runner has not verified it."""
    if latest is None:
        return False
    return latest.state is RotationState.RUNNING or (
        latest.state is RotationState.DONE and bool(latest.journal) and _get_verification_outcome(latest) is None
    )


def can_resume(latest: RotationProgress) -> bool:
    """Whether it can be tried again: it was left in the middle, or something in it failed."""
    failed = bool(latest.journal) and _get_verification_outcome(latest) is not StepOutcome.SUCCEEDED
    return (
        is_unfinished(latest) or latest.state is RotationState.FAILED or (latest.state is RotationState.DONE and failed)
    )


def _get_verification_outcome(latest: RotationProgress) -> StepOutcome | None:
    """How its runner's latest verification ended; None if none came to its end since the last change."""
    for entry in reversed(latest.journal):
        if entry.outcome not in (StepOutcome.SUCCEEDED, StepOutcome.PROBLEMS):
            continue
        if entry.step is JournalStep.VERIFY:
            return entry.outcome
        if entry.step is JournalStep.ROTATE:
            break
    return None


def describe_unfinished(latest: RotationProgress) -> str:
    subject = "the rollback of rotation" if latest.is_rolling_back else "rotation"
    return f"{subject} {latest.rotation_id}, started by {latest.caller}, is not finished: {describe_done(latest)} done"


def refuse_unfinished(latest: RotationProgress | None) -> None:
    """Raises RotatorError, with the commands to continue, if a rotation is unfinished."""
    if latest is not None and is_unfinished(latest):
        raise RotatorError(describe_unfinished(latest), *get_next_commands(latest))


def get_next_commands(latest: RotationProgress) -> tuple[str, ...]:
    return ("rollback",) if latest.is_rolling_back else ("resume", "rollback")


def build_plan(
    type_: RotationType, usage: KeyUsage, *, key: str, primary: str, min_age: float, has_own_keys: bool = True
) -> Plan:
    """What a rotation of this type would do. The clock is the database's, from `usage`: this machine's may be wrong.

    A data key that a rotation made less than `min_age` seconds ago is not replaced.
    """
    if type_ is RotationType.NEW_DEK:
        count, sentence = _plan_new_dek(usage, primary, min_age)
    else:
        count, sentence = _plan_rewrap(usage, key, primary)
    return Plan(
        type=type_,
        target_version=primary,
        data_keys=count,
        summary=sentence,
        excluded=(*_list_local(usage), *list_unnamed(usage, key, has_own_keys=has_own_keys)),
    )


def _plan_new_dek(usage: KeyUsage, primary: str, min_age: float) -> tuple[int, str]:
    newest_dek_at, now = usage.new_dek_at, usage.counted_at
    if (
        newest_dek_at and now and abs(now - newest_dek_at) < timedelta(seconds=min_age)
    ):  # later ones are of a clock that was ahead
        active = f"the active data key {usage.active} was made by a rotation at {newest_dek_at:%Y-%m-%d %H:%M:%S} UTC"
        return 0, f"{active}; {_HINT}"
    instead = f"; {usage.active} stays for reading" if usage.active else ""
    if usage.encryptions and usage.encryptions > MAX_DATA_KEY_ENCRYPTIONS / 2:
        used = f"{usage.active} has encrypted {usage.encryptions:,} times, of {MAX_DATA_KEY_ENCRYPTIONS:,} at most"
        instead += f". Do not wait: {used}, and a nonce that repeats reveals records"
    return 1, f"1 new data key, wrapped by version {primary} of the KMS key, becomes the active one{instead}"


def _plan_rewrap(usage: KeyUsage, key: str, primary: str) -> tuple[int, str]:
    counts = [count for count in usage.versions if count.kek in (key, *usage.previous_keks)]
    due = [count for count in counts if (count.kek, count.kek_version) != (key, primary) and count.data_keys]
    total = sum(count.data_keys for count in due)
    if not total:
        wrapped = sum(count.data_keys for count in counts)
        which = "the data key" if wrapped == 1 else f"all {wrapped} data keys"
        return 0, f"{which} of the KMS key {'is' if wrapped == 1 else 'are'} wrapped by its primary version {primary}"
    of = {kek: f" of {kek}" for kek in usage.previous_keks}
    by = ", ".join(
        f"{count.data_keys} by version {count.kek_version or 'unreadable'}{of.get(count.kek, '')}" for count in due
    )
    return total, f"{format_count(total, 'data key')} ({by}) to be re-wrapped by version {primary} of the KMS key"


def _list_local(usage: KeyUsage) -> list[str]:
    return [
        f"{format_count(count.data_keys, 'data key')} wrapped by the local fallback key; the service itself re-wraps "
        "such a key once it reaches KMS"
        for count in usage.versions
        if count.kek == LOCAL_KEK
    ]


def list_unnamed(usage: KeyUsage, key: str, *, has_own_keys: bool) -> list[str]:
    """The data keys whose KMS key no setting names, a sentence for each version."""
    counts = [count for count in usage.versions if count.kek not in (LOCAL_KEK, key, *usage.previous_keks)]
    if not has_own_keys:
        return [
            f"{format_count(count.data_keys, 'row')} wrapped by {count.kek}, another KMS key; left as before"
            for count in counts
        ]
    return [
        f"{format_count(count.data_keys, 'data key')} wrapped by {count.kek}, which neither `kms` nor "
        "`previous_kms` of the service names: add it to `previous_kms`"
        for count in counts
    ]
