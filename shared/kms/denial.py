"""Diagnoses a denial that the service does not explain, by asking: harmless calls of a provider in → Diagnosis.

Permissions come first: a role that is missing denies whatever else is wrong. A question that is refused with a cause
tells it for the denied call, too.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from shared.kms.port import Answer, Diagnosis, KmsError, Question
from shared.kms.reason import Cause, Reason


@dataclass(frozen=True, slots=True)
class Finding:
    """What the key or the service shows of itself."""

    text: str
    cause: Cause = Cause.NONE
    """Why it denies calls, as far as this shows it."""
    conclusion: str = ""
    """The same as a sentence without its full stop."""
    values: Mapping[str, str] = field(default_factory=dict)
    """As those of KmsError."""


async def diagnose_denial(
    permission: str,
    check_permissions: Callable[[], Awaitable[frozenset[str]]],
    read_key: Callable[[], Awaitable[Finding]] | None = None,
    read_service: Callable[[], Awaitable[Finding]] | None = None,
    *,
    key_permission: str = "",
) -> Diagnosis:
    """Asks until the cause is clear.

    Args:
        permission: what the denied call needs; empty where the provider does not name it.
        check_permissions: which permissions are granted, `permission` and `key_permission` among them.
        read_key: what the key shows; None if the provider has nothing to show.
        read_service: what the service shows; None if it cannot be asked.
        key_permission: what `read_key` needs: without it a key that surely exists is not read.
    """
    asked = _Asked(permission)

    async def find_permissions() -> Finding:
        asked.granted = await check_permissions()
        return Finding(f"granted: {', '.join(sorted(asked.granted)) or 'none'}")

    await asked.ask(Question.PERMISSIONS, find_permissions)
    if read_key and not asked.conclude() and (not asked.granted or key_permission in asked.granted):
        await asked.ask(Question.KEY, read_key)
    if read_service and not asked.conclude() and asked.granted != frozenset():
        await asked.ask(Question.SERVICE, read_service)
    cause, text, values = asked.conclude() or asked.conclude_from_nothing()
    return Diagnosis(
        cause, text, tuple(asked.answers), {**values, **({"permission": permission} if permission else {})}
    )


_Conclusion = tuple[Cause, str, Mapping[str, str]]
"""The cause, a sentence without its full stop, and the values of KmsError."""


@dataclass(slots=True)
class _Asked:
    """What was asked, and what it shows."""

    permission: str
    granted: frozenset[str] | None = None
    """None while it is not known."""
    answers: list[Answer] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    errors: dict[Question, KmsError] = field(default_factory=dict)

    async def ask(self, question: Question, call: Callable[[], Awaitable[Finding]]) -> None:
        try:
            finding = await call()
        except KmsError as error:
            self.errors[question] = error
            # The usual cause of a silent refusal would be one more guess.
            label = error.reason if error.is_silent else error.label
            self.answers.append(Answer(question, f"{label}: {error.detail}"))
        else:
            self.findings.append(finding)
            self.answers.append(Answer(question, finding.text))

    def conclude(self) -> _Conclusion | None:
        """The cause where an answer shows it."""
        if self.granted and self.permission and self.permission not in self.granted:
            return Cause.ROLE_MISSING, f"{self.permission} is not granted on the key", {}
        for error in self.errors.values():
            if error.reason is Reason.KEY_NOT_FOUND:
                return Cause.NONE, "the key does not exist", {}
            if error.cause.reason is Reason.PERMISSION_DENIED and error.cause is not Cause.ROLE_MISSING:
                return error.cause, f"probably as another call says: {error.detail}", error.values
        if self.granted == frozenset():
            return None  # whatever the key shows, a role is missing
        return next(((each.cause, each.conclusion, each.values) for each in self.findings if each.cause), None)

    def conclude_from_nothing(self) -> _Conclusion:
        """What is left where no answer shows a cause."""
        if self.granted:
            hidden = "probably a deny policy, a condition or a perimeter that hides itself"
            return Cause.NONE, f"{self.permission or 'every permission'} is granted: {hidden}", {}
        if self.granted is not None:
            doubt = "" if len(self.findings) > 1 else ": its role is missing, or the key does not exist"
            return Cause.ROLE_MISSING, f"no permission is granted on the key{doubt}", {}
        if self.errors[Question.PERMISSIONS].is_silent:
            hidden = "probably a perimeter or a policy that hides itself"
            return Cause.NONE, f"even a call that needs no permission is denied: {hidden}", {}
        return Cause.NONE, "the permissions could not be read: a role may be missing", {}
