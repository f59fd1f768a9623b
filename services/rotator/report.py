"""What a command came to: for programs as JSON, for people as Markdown. Neither holds key material."""

import shlex
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from pydantic import BaseModel

from services.rotator.backup import Summary
from services.rotator.backups import noted
from services.rotator.model import PROGRAM, Took
from services.rotator.plan import Plan
from shared.keyring.administration import Census, Problem, Progress, Verification


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    NOTHING_TO_DO = "nothing to do"
    FAILED = "failed"


class KeptBackup(Summary):
    """A backup and where it is."""

    file: str


class OtherKeyring(BaseModel):
    """A further keyring that the same KMS key wraps."""

    keyring: str
    """Where it is."""
    census: Census | None = None
    """None where it did not answer."""
    why: str | None = None
    """Why it did not."""


class Report(BaseModel):
    """Everything that a command has to say."""

    command: str
    outcome: Outcome
    sentence: str
    then: tuple[str, ...] = ()
    """What to type next, most likely first."""
    plans: tuple[Plan, ...] = ()
    rotation: Progress | None = None
    census: Census | None = None
    others: tuple[OtherKeyring, ...] = ()
    backup: KeptBackup | None = None
    verification: Verification | None = None
    problems: tuple[Problem, ...] = ()
    """What is wrong now."""
    steps: tuple[Took, ...] = ()


_NOTED: Final = 30
"""Steps of a rotation that a person is shown, at most."""
_MARKS: Final = {Outcome.DONE: "✓", Outcome.NOTHING_TO_DO: "-", Outcome.FAILED: "✗"}


def markdown(report: Report, config: str) -> str:
    """For a person, in a terminal or a summary of GitHub's; `config` is how the configuration was named."""
    lines = [f"## {_MARKS[report.outcome]} {PROGRAM} {report.command}: {report.outcome}", "", _cell(report.sentence)]
    for plan in report.plans:
        lines += [
            "",
            f"**{plan.type}**: {_cell(plan.sentence)}",
            *(f"- left out: {_cell(left)}" for left in plan.left_out),
        ]
    if rotation := report.rotation:
        lines += ["", *_facts(_of_rotation(rotation))]
    if backup := report.backup:
        lines += ["", *_facts({"backup": backup.file, "data keys": backup.data_keys, "SHA-256": backup.sha256})]
    if census := report.census:
        lines += ["", *_of_census(census)]
    lines += _of_others(report.others)
    if found := report.verification:
        read = f"{found.data_keys} data keys and {found.records} records read"
        lines += ["", *_facts({"verified": read, "fingerprint": found.fingerprint})]
    if report.problems:
        lines += ["", *_table(("what", "why"), ((each.id, each.why) for each in report.problems))]
    if report.steps:
        rows = ((each.step, each.seen, f"{each.seconds:.1f} s") for each in report.steps)
        lines += ["", *_table(("step", "seen", "took"), rows)]
    elif report.rotation and report.rotation.steps:
        lines += ["", *_table(("noted, the latest last",), ((step,) for step in report.rotation.steps[-_NOTED:]))]
    if report.then:
        lines += ["", "Next:", "", *(f"    {PROGRAM} {words} --config {shlex.quote(config)}" for words in report.then)]
    return "\n".join(lines) + "\n"


def _of_rotation(rotation: Progress) -> dict[str, object]:
    return {
        "rotation": rotation.rotation_id,
        "type": rotation.type,
        "state": rotation.state,
        "done": f"{rotation.done} of {rotation.total}",
        "KMS version": rotation.target_version,
        "by": rotation.caller,
        "started": f"{rotation.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "last change": f"{rotation.updated_at:%Y-%m-%d %H:%M:%S} UTC",
    }


def _of_census(census: Census) -> Iterable[str]:
    retired = {each.kek_version: f"{each.retired_at:%Y-%m-%d}" for each in census.retired_versions}
    rows = (
        (each.kek, each.kek_version, each.data_keys, each.records, retired.get(each.kek_version, ""))
        for each in census.versions
    )
    yield from _facts({"active data key": census.active, "since": census.active_since})
    yield ""
    yield from _table(("key", "version", "data keys", "records", "retired"), rows)


def _of_others(others: tuple[OtherKeyring, ...]) -> list[str]:
    heads = ("other keyring", "key", "version", "data keys", "records", "backups")
    return ["", *_table(heads, (row for other in others for row in _of_other(other)))] if others else []


def _of_other(other: OtherKeyring) -> Iterable[tuple[object, ...]]:
    if other.census is None:
        yield other.keyring, "", f"it may need any: {other.why}", "", "", ""
        return
    counted = {(each.kek, each.kek_version): (each.data_keys, each.records) for each in other.census.versions}
    backups, own = noted(other.census.backups), other.census.kek or ""
    for backup in backups:
        for version in backup.needs or ():
            counted.setdefault((own, version), (0, 0))
    for (kek, version), numbers in sorted(counted.items()):
        yield other.keyring, kek, version, *numbers, sum(each.may_need(version) for each in backups if kek == own)


def _facts(facts: dict[str, object]) -> list[str]:
    return [f"- {name}: {_cell(value)}" for name, value in facts.items() if value is not None]


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *(_row(row) for row in rows)]


def _row(cells: tuple[object, ...]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    """A value that can break neither a table nor a terminal, and is no mark-up: what a server answers may hold any."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return "".join(f"\\{character}" if character in "|<>`[]" else character for character in text)
