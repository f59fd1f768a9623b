"""The types that the rotator's modules share. Frozen, no I/O."""

from typing import Final, NamedTuple, Protocol

from pydantic import BaseModel

from shared.keyring.administration import JournalStep, StepOutcome

PROGRAM: Final = "keypulse-rotator"


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
    """A short description of its result."""
    seconds: float


class StepProgress(NamedTuple):
    """How far a command is."""

    step: str
    done: int
    """Data keys of this step."""
    total: int
    calls: int
    """Of KMS so far, in this step and in those before it: what takes the time."""
    total_calls: int
    """In the steps that follow, too."""


class ProgressReporter(Protocol):
    """Shows the progress to the person who waits."""

    def report_step(self, name: str, detail: str = "") -> None:
        """A step begins; or it ends, where there is a detail."""
        ...

    def report_progress(self, progress: StepProgress) -> None:
        """A step continues."""
        ...
