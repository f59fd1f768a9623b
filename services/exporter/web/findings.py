"""What is not as it should be with a key or a backend: what was found of it in, findings for a person out. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.exporter.history import MAX_TEXT_LENGTH, FailureSpan
from services.exporter.model import BackendState, KeyInspection
from services.exporter.web import advice
from services.exporter.web.advice import Advice
from services.exporter.web.words import format_time
from shared.contract import CryptoMode
from shared.kms.reason import Reason

PERMANENT_CANARY_REASONS: Final = frozenset(
    {
        Reason.KEY_DISABLED,
        Reason.KEY_DESTROYED,
        Reason.KEY_NOT_FOUND,
        Reason.CRC_MISMATCH,
        Reason.PLAINTEXT_MISMATCH,
        Reason.INVALID_REQUEST,
    }
)
"""Reasons that are of the version or its ciphertext, and do not pass; those of the alert KMSCanaryLost."""
_MAX_NAMED_VERSIONS: Final = 5
"""Versions named in a sentence."""


class HealthStatus(IntEnum):
    """How it stands, the worst first. Its name in lower case is the class of its colour and shape."""

    FAILING = 0
    DEGRADED = 1
    UNKNOWN = 2
    HEALTHY = 3


STATUS_LABELS: Final = {
    HealthStatus.FAILING: "Failing",
    HealthStatus.DEGRADED: "Attention",
    HealthStatus.UNKNOWN: "No news",
    HealthStatus.HEALTHY: "Well",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    status: HealthStatus
    title: str
    """A reason, or a few words."""
    text: str
    advice: Advice | None = None
    connectivity: str | None = None
    """Whether it is the network or KMS."""
    due_at: float | None = None
    """Unix seconds: when what the sentence says will happen."""


def build_failure_finding(span: FailureSpan) -> Finding:
    """Of a key whose last round trips failed."""
    title = f"{span.reason} at {span.operation}"
    advised = advice.advise_on_failure(span.reason, span.connectivity)
    return Finding(HealthStatus.FAILING, title, span.detail, advised, advice.describe_connectivity(span.connectivity))


def build_success_expired_finding(at: float) -> Finding:
    """Of a key whose last round trip succeeded too long ago to count."""
    sentence = f"The last one succeeded at {format_time(at)}; that is too long ago to count."
    return Finding(HealthStatus.FAILING, "no round trip in time", sentence, advice.SUCCESS_EXPIRED_ADVICE)


def build_stale_finding(text: str) -> Finding:
    """Of what nothing has been heard of for long; `text` says since when, without its full stop."""
    return Finding(HealthStatus.DEGRADED, "no news", f"{text}; what is shown may be over. Look at the exporter's log.")


def find_key_problems(inspection: KeyInspection, now: float) -> Iterator[Finding]:
    """Of the last look at a key; `now` in Unix seconds."""
    yield from _find_canary_problems(inspection)
    if inspection.wrong_aad_check and (failure := inspection.wrong_aad_check.failure):
        yield Finding(HealthStatus.FAILING, "wrong AAD accepted", _truncate(failure.detail), advice.WRONG_AAD_ADVICE)
    known = inspection.description.versions if inspection.description else ()
    if doomed := {version.id: version.destroy_at for version in known if version.destroy_at is not None}:
        first = min(doomed.values())
        sentence = f"{format_versions(doomed).capitalize()} will be destroyed{', the first' if len(doomed) > 1 else ''}"
        yield Finding(HealthStatus.DEGRADED, "destruction scheduled", sentence, advice.DESTRUCTION_ADVICE, due_at=first)
    if missing := [name for name, granted in (inspection.permissions or {}).items() if not granted]:
        sentence = f"IAM does not grant {', '.join(missing)}."
        yield Finding(HealthStatus.DEGRADED, "permission missing", sentence, advice.PERMISSION_ADVICE)
    planned = inspection.description.next_rotation_at if inspection.description else None
    if planned is not None and planned < now:
        sentence = f"The key was to be rotated at {format_time(planned)}; gcloud kms keys describe shows its plan."
        yield Finding(HealthStatus.DEGRADED, "rotation overdue", sentence)
    if inspection.problems:
        yield Finding(HealthStatus.DEGRADED, "not all could be read or kept", _truncate("; ".join(inspection.problems)))


def _find_canary_problems(inspection: KeyInspection) -> Iterator[Finding]:
    """One finding for each reason, whatever the number of versions."""
    failed: dict[Reason, dict[str, str]] = {}
    for canary in inspection.canaries:
        if failure := canary.call.failure:
            failed.setdefault(failure.reason, {})[canary.version] = failure.detail
    for reason, details in failed.items():
        what = f"What {format_versions(details)} encrypted cannot be decrypted: {next(iter(details.values()))}"
        if reason in PERMANENT_CANARY_REASONS:
            yield Finding(HealthStatus.FAILING, f"canary lost, {reason}", _truncate(what), advice.CANARY_LOST_ADVICE)
        else:
            yield Finding(HealthStatus.DEGRADED, f"canary not decrypted, {reason}", _truncate(what), advice.REASON_ADVICE[reason])


def find_backend_problems(state: BackendState) -> Iterator[Finding]:
    """Of the last read of a backend."""
    problems = _truncate("; ".join(state.problems))
    if state.health is None:
        yield Finding(HealthStatus.FAILING, "down", problems, advice.BACKEND_DOWN_ADVICE)
        return
    if state.health.mode is not CryptoMode.KMS:
        sentence = "New data keys are wrapped by a key on its own disk, not by KMS."
        yield Finding(HealthStatus.FAILING, f"mode is {state.health.mode}", sentence, advice.NOT_KMS_ADVICE)
    if not state.health.ready:
        yield Finding(HealthStatus.FAILING, "not ready", "It can neither encrypt nor decrypt.", advice.NOT_READY_ADVICE)
    if problems:
        yield Finding(HealthStatus.DEGRADED, "not all could be read", problems)


def format_versions(numbers: Collection[str]) -> str:
    """`version 3`, `versions 3, 2, 1`, `versions 9, 8, 7, 6, 5 and 4 more`."""
    named, more = list(numbers)[:_MAX_NAMED_VERSIONS], len(numbers) - _MAX_NAMED_VERSIONS
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(named)}{f' and {more} more' if more > 0 else ''}"


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else f"{text[:MAX_TEXT_LENGTH]}…"
