"""Parses the journal's text of before version 2 of the tables, once, for the migration.

What runners wrote then was `STEP DETAIL`, `failed STEP: ERROR`, `backup NAME SHA256 needs 1,2`, `nothing to do: TYPE`.
"""

import re
from typing import Final

from shared.keyring.administration import JournalEntry, JournalStep, RotationType, StepOutcome
from shared.keyring.model import UNREADABLE_VERSION

_STEPS: Final = {
    "smoke": JournalStep.SMOKE,
    "target": JournalStep.PRIMARY_VERSION,
    "backup": JournalStep.BACKUP,
    "encrypt": JournalStep.PRIMARY_IN_USE,
    "rotate": JournalStep.ROTATE,
    "reload": JournalStep.RELOAD,
    "verify": JournalStep.VERIFY,
    "rollback": JournalStep.ROLLBACK,
    "retarget": JournalStep.RETARGET,
}
_NOTHING_TO_DO: Final = "nothing to do: "
_BACKUP: Final = re.compile(r"backup (?P<name>\S+) (?P<sha256>\S+)( needs (?P<needs>-?\d{1,10}(,-?\d{1,10})*))?")
_FAILED: Final = re.compile(r"failed (?P<step>\w+)(?P<rest>.*)", re.DOTALL)
_PROBLEMS: Final = re.compile(r"problems: \d+")


def parse_legacy_text(text: str) -> JournalEntry:
    """The entry that `text` was; its step is `unknown` where it is none of those that runners wrote."""
    if text.startswith(_NOTHING_TO_DO):
        return _parse_nothing_to_do(text)
    if found := _FAILED.fullmatch(text):
        return _parse_failure(found, text)
    name, _, detail = text.partition(" ")
    step = _STEPS.get(name)
    if step is None:
        return _build_unreadable(text)
    if step is JournalStep.BACKUP:
        return _parse_backup(text)
    left_out = step is JournalStep.ROTATE and detail.endswith(", failed")
    return JournalEntry(step=step, outcome=StepOutcome.PROBLEMS if left_out else StepOutcome.SUCCEEDED, detail=detail)


def _parse_nothing_to_do(text: str) -> JournalEntry:
    type_ = text.removeprefix(_NOTHING_TO_DO)
    if type_ not in list(RotationType):
        return _build_unreadable(text)
    return JournalEntry(
        step=JournalStep.PLAN, outcome=StepOutcome.NOTHING_TO_DO, rotation_type=RotationType(type_), detail=""
    )


def _parse_failure(found: re.Match[str], text: str) -> JournalEntry:
    step, rest = _STEPS.get(found["step"]), found["rest"]
    if step is None or (rest and not rest.startswith(": ")):
        return JournalEntry(step=JournalStep.UNKNOWN, outcome=StepOutcome.FAILED, detail=text)
    error = rest.removeprefix(": ")
    problems = step is JournalStep.VERIFY and _PROBLEMS.fullmatch(error)
    return JournalEntry(step=step, outcome=StepOutcome.PROBLEMS if problems else StepOutcome.FAILED, detail=error)


def _parse_backup(text: str) -> JournalEntry:
    found = _BACKUP.fullmatch(text)
    if found is None:
        return _build_unreadable(text)
    return JournalEntry(
        step=JournalStep.BACKUP,
        outcome=StepOutcome.SUCCEEDED,
        backup_name=found["name"],
        sha256=found["sha256"],
        needs=_parse_needs(found["needs"]) if found["needs"] else None,
    )


def _parse_needs(text: str) -> tuple[str, ...]:
    """Versions were numbers; -1 stood for one that could not be read."""
    return tuple(UNREADABLE_VERSION if number.startswith("-") else str(int(number)) for number in text.split(","))


def _build_unreadable(text: str) -> JournalEntry:
    return JournalEntry(step=JournalStep.UNKNOWN, outcome=StepOutcome.UNREADABLE, detail=text)
