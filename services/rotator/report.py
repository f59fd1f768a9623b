"""What commands give: their errors, progress and results, for programs as JSON, for people as Markdown.

Nothing here holds key material.
"""

import shlex
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict

from shared.keyring.administration import (
    JournalStep,
    KeyUsage,
    Problem,
    RotationProgress,
    RotationType,
    StepOutcome,
    VerificationResult,
)
from shared.keyring.model import get_version_sort_key
from shared.kms.port import ProtectedResources

PROGRAM: Final = "keypulse-rotator"


def _to_printable(text: str) -> str:
    """Shows the bytes of a file's name that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


PrintableText = Annotated[str, BeforeValidator(_to_printable)]


class RotatorError(Exception):
    """Ends a command. Nothing is lost by it.

    Args:
        message: one sentence for a person.
        next_commands: what to type next, the most likely first, such as `resume`; without the program's name.
    """

    def __init__(self, message: str, *next_commands: str) -> None:
        super().__init__(message)
        self.message = message
        self.next_commands = next_commands


class StepResult(BaseModel):
    """One step that came to its end."""

    step: JournalStep
    outcome: StepOutcome
    detail: str
    seconds: float


def format_count(number: int, singular: str) -> str:
    """`1 data key`, `2 data keys`."""
    return f"{number} {singular}{'' if number == 1 else 's'}"


def describe_done(rotation: RotationProgress) -> str:
    """How far it is: a new data key has two steps, and a re-wrap one for each data key."""
    return f"{rotation.done} of {format_count(rotation.total, get_unit(rotation.type))}"


def get_unit(type_: RotationType) -> str:
    return "step" if type_ is RotationType.NEW_DEK else "data key"


class StepProgress(NamedTuple):
    step: str
    done: int
    total: int
    calls: int
    """Of KMS so far, in this step and in those before it: what takes the time."""
    total_calls: int
    """In the steps that follow, too."""
    unit: str = "data key"


class ProgressReporter(Protocol):
    """Shows the progress to the person who waits."""

    def report_step(self, name: str, detail: str = "") -> None:
        """A step begins; or it ends, where there is a detail."""
        ...

    def report_progress(self, progress: StepProgress) -> None: ...


class Plan(BaseModel):
    """What one type of rotation would do."""

    type: RotationType
    target_version: str
    data_keys: int
    """How many data keys would be created or re-wrapped; 0 if there is nothing to do."""
    summary: str
    excluded: tuple[str, ...] = ()
    """What no rotation touches, each in one sentence."""


class BackupSummary(BaseModel):
    model_config = ConfigDict(frozen=True)

    data_keys: int
    sha256: str
    """Of the CSV, hexadecimal."""
    fingerprint: str
    """Of all its data keys by id, as `Verification` has it."""


class CommandOutcome(StrEnum):
    DONE = "done"
    NOTHING_TO_DO = "nothing to do"
    FAILED = "failed"
    STOPPED = "stopped"
    """By a signal: nothing follows it."""

    @property
    def is_success(self) -> bool:
        return self in (CommandOutcome.DONE, CommandOutcome.NOTHING_TO_DO)


class BackupReport(BackupSummary):
    file: PrintableText


class OtherKeyringUsage(BaseModel):
    """A further keyring that the same KMS key wraps."""

    name: str
    census: KeyUsage | None = None
    error: str | None = None


class PreviousKey(BaseModel):
    """A KMS key that only unwraps."""

    kek: str
    needed_by: tuple[PrintableText, ...]
    """What still needs it, as far as it is known; empty where it may go from `previous_kms`."""

    def __str__(self) -> str:
        if self.needed_by:
            return f"{self.kek} is needed by {', '.join(self.needed_by)}"
        return f"nothing needs {self.kek} any more, so it may go"


class CommandReport(BaseModel):
    command: str = ""
    """Empty until it is shown, where it is as typed."""
    outcome: CommandOutcome
    summary: PrintableText
    next_commands: tuple[PrintableText, ...] = ()
    """What to type next, most likely first."""
    plans: tuple[Plan, ...] = ()
    rotation: RotationProgress | None = None
    census: KeyUsage | None = None
    other_keyrings: tuple[OtherKeyringUsage, ...] = ()
    previous_keys: tuple[PreviousKey, ...] = ()
    backup: BackupReport | None = None
    verification: VerificationResult | None = None
    protected: tuple[ProtectedResources, ...] = ()
    """What the provider's own products protect with versions that may go."""
    problems: tuple[Problem, ...] = ()
    """What is wrong now."""
    steps: tuple[StepResult, ...] = ()


_MAX_JOURNAL_ENTRIES: Final = 30
"""Steps of a rotation that are shown, the latest last."""
_UNKNOWN_USES: Final = (
    "No API knows what applications decrypt by themselves, and the provider's inventory is late and incomplete: "
    "that it names nothing is no proof."
)
_OUTCOME_SYMBOLS: Final = {CommandOutcome.DONE: "✓", CommandOutcome.NOTHING_TO_DO: "-"}


def format_markdown(report: CommandReport, config: str) -> str:
    """For a person, in a terminal or a summary of GitHub's; `config` is how the configuration was named."""
    lines = [
        f"## {_OUTCOME_SYMBOLS.get(report.outcome, '✗')} {PROGRAM} {report.command}: {report.outcome}",
        "",
        _escape_cell(report.summary),
    ]
    for plan in report.plans:
        lines += [
            *(() if plan.summary == report.summary else ("", _format_plan(plan))),
            *(f"- left out: {_escape_cell(excluded)}" for excluded in plan.excluded),
        ]
    lines += (line for key in report.previous_keys for line in ("", f"**previous_kms**: {_escape_cell(key)}"))
    if rotation := report.rotation:
        lines += ["", *_format_list(_format_rotation(rotation))]
    if backup := report.backup:
        facts = {"backup": backup.file, "data keys in it": backup.data_keys, "SHA-256": backup.sha256}
        lines += ["", *_format_list(facts)]
    if usage := report.census:
        lines += ["", *_format_key_usage(usage)]
    lines += _format_other_keyrings(report.other_keyrings)
    lines += _format_protected(report.protected)
    if found := report.verification:
        read = f"{format_count(found.data_keys, 'data key')} and {format_count(found.records, 'record')} read"
        lines += ["", *_format_list({"verified": read, "fingerprint": found.fingerprint})]
    if report.problems:
        lines += ["", *_format_table(("what", "why"), ((each.id, each.error) for each in report.problems))]
    if report.steps:
        rows = ((each.step, each.outcome, each.detail, f"{each.seconds:.1f} s") for each in report.steps)
        lines += ["", *_format_table(("step", "outcome", "detail", "time"), rows)]
    elif report.rotation and report.rotation.journal:
        entries = ((each.step, each.outcome, each.detail) for each in report.rotation.journal[-_MAX_JOURNAL_ENTRIES:])
        lines += ["", *_format_table(("step", "outcome", "detail"), entries)]
    if report.next_commands:
        lines += [
            "",
            "Next:",
            "",
            *(f"    {PROGRAM} {command} --config {shlex.quote(config)}" for command in report.next_commands),
        ]
    return "\n".join(lines) + "\n"


def _format_plan(plan: Plan) -> str:
    return f"**{plan.type}**: {'' if plan.data_keys else 'nothing to do: '}{_escape_cell(plan.summary)}"


def _format_rotation(rotation: RotationProgress) -> dict[str, object]:
    return {
        "rotation": rotation.rotation_id,
        "type": rotation.type,
        "state": rotation.state,
        "done": describe_done(rotation),
        "KMS version": rotation.target_version,
        "by": rotation.caller,
        "started": f"{rotation.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "last change": f"{rotation.updated_at:%Y-%m-%d %H:%M:%S} UTC",
    }


def _format_key_usage(usage: KeyUsage) -> Iterable[str]:
    retired = {each.kek_version: f"{each.retired_at:%Y-%m-%d}" for each in usage.retired_versions}
    rows = (
        (each.kek, each.kek_version or "unreadable", each.data_keys, each.records, retired.get(each.kek_version, ""))
        for each in usage.versions
    )
    yield from _format_list({"active data key": usage.active, "since": usage.active_since})
    yield ""
    yield from _format_table(("key", "version", "data keys", "records", "retired"), rows)
    if usage.excluded:
        excluded = ((each.kek, each.kek_version or "unreadable", each.data_keys) for each in usage.excluded)
        yield ""
        yield from _format_table(("key", "version", "rows that `driver.where` leaves out"), excluded)


def _format_other_keyrings(other_keyrings: tuple[OtherKeyringUsage, ...]) -> list[str]:
    heads = ("other keyring", "key", "version", "data keys", "records", "backups")
    return (
        ["", *_format_table(heads, (row for other in other_keyrings for row in _list_other_rows(other)))]
        if other_keyrings
        else []
    )


def _format_protected(protected: tuple[ProtectedResources, ...]) -> list[str]:
    heads, rows = ("version", "protects, of the provider's own products"), ((each.version, each) for each in protected)
    return ["", *_format_table(heads, rows), "", _UNKNOWN_USES] if protected else []


def _list_other_rows(usage: OtherKeyringUsage) -> Iterable[tuple[object, ...]]:
    if usage.census is None:
        yield usage.name, "", f"it may need any: {usage.error}", "", "", ""
        return
    counted = {(each.kek, each.kek_version): (each.data_keys, each.records) for each in usage.census.versions}
    backups, own = usage.census.backups, usage.census.kek or ""
    for backup in backups:
        for version in backup.needs or ():
            counted.setdefault((own, version), (0, 0))
    in_order = sorted(counted.items(), key=lambda item: (item[0][0], get_version_sort_key(item[0][1])))
    for (kek, version), numbers in in_order:
        yield usage.name, kek, version, *numbers, sum(each.may_need(version) for each in backups if kek == own)


def _format_list(facts: dict[str, object]) -> list[str]:
    return [f"- {name}: {_escape_cell(value)}" for name, value in facts.items() if value is not None]


def _format_table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    return [_format_row(head), _format_row(("---",) * len(head)), *(_format_row(row) for row in rows)]


def _format_row(cells: tuple[object, ...]) -> str:
    return f"| {' | '.join(_escape_cell(cell) for cell in cells)} |"


def _escape_cell(value: object) -> str:
    """A value that can break neither a table nor a terminal, and is no mark-up: what a server answers may hold any."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return "".join(f"\\{character}" if character in "|<>`[]" else character for character in text)
