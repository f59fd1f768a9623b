"""What the rotator's rooms hand to each other. Frozen, no I/O."""

from typing import Final, NamedTuple, Protocol

from pydantic import BaseModel

PROGRAM: Final = "keypulse-rotator"


class RotatorError(Exception):
    """Ends a command. Nothing is lost by it.

    Args:
        why: one sentence for a person.
        then: what to type next, most likely first, such as `resume`; words after the program's name.
    """

    def __init__(self, why: str, *then: str) -> None:
        super().__init__(why)
        self.why = why
        self.then = then


class Took(BaseModel):
    """One step, done."""

    step: str
    seen: str
    """What it came to, in a few words."""
    seconds: float


class Amount(NamedTuple):
    """How far a command is."""

    step: str
    done: int
    """Data keys of this step."""
    total: int
    calls: int
    """Of KMS so far, in this step and in those before it: what takes the time."""
    all_calls: int
    """In the steps that follow, too."""


class Tell(Protocol):
    """Where the person who waits is told what happens."""

    def step(self, name: str, detail: str = "") -> None:
        """A step begins, or has come to something where there is a detail."""
        ...

    def progress(self, amount: Amount) -> None:
        """A step goes on."""
        ...
