"""What is not as it should be with a key or a backend: what was found of it in, findings for a person out. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.exporter.history import SENTENCE, FailureSpan
from services.exporter.model import BackendState, KeySnapshot
from services.exporter.web import advice
from services.exporter.web.advice import Advice
from services.exporter.web.words import moment
from shared.contract import CryptoMode
from shared.kms.reason import Reason

LOST: Final = frozenset(
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
_NAMED: Final = 5
"""Versions named in a sentence."""


class Light(IntEnum):
    """How it stands, the worst first. Its name in lower case is the class of its colour and shape."""

    FAILING = 0
    ATTENTION = 1
    UNKNOWN = 2
    WELL = 3


WORDS: Final = {
    Light.FAILING: "Failing",
    Light.ATTENTION: "Attention",
    Light.UNKNOWN: "No news",
    Light.WELL: "Well",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    light: Light
    title: str
    """A reason, or a few words."""
    sentence: str
    advice: Advice | None = None
    way: str | None = None
    """Whether it is the network or KMS."""
    at: float | None = None
    """Unix seconds: when what the sentence says will happen."""


def of_failures(span: FailureSpan) -> Finding:
    """Of a key whose last round trips failed."""
    title = f"{span.reason} at {span.operation}"
    advised = advice.of_a_failure(span.reason, span.way)
    return Finding(Light.FAILING, title, span.detail, advised, advice.of_the_way(span.way))


def of_overdue(at: float) -> Finding:
    """Of a key whose last round trip succeeded too long ago to count."""
    sentence = f"The last one succeeded at {moment(at)}; that is too long ago to count."
    return Finding(Light.FAILING, "no round trip in time", sentence, advice.OVERDUE)


def of_old_news(sentence: str) -> Finding:
    """Of what nothing has been heard of for long; `sentence` says since when, without its full stop."""
    return Finding(Light.ATTENTION, "no news", f"{sentence}; what is shown may be over. Look at the exporter's log.")


def of_snapshot(snapshot: KeySnapshot, now: float) -> Iterator[Finding]:
    """Of the last look at a key; `now` in Unix seconds."""
    yield from _of_canaries(snapshot)
    if snapshot.wrong_aad and (failure := snapshot.wrong_aad.failure):
        yield Finding(Light.FAILING, "wrong AAD accepted", _cut(failure.detail), advice.WRONG_AAD)
    known = snapshot.description.versions if snapshot.description else ()
    if doomed := {version.number: version.destroy_at for version in known if version.destroy_at is not None}:
        first = min(doomed.values())
        sentence = f"{of_versions(doomed).capitalize()} will be destroyed{', the first' if len(doomed) > 1 else ''}"
        yield Finding(Light.ATTENTION, "destruction scheduled", sentence, advice.DESTRUCTION, at=first)
    if missing := [name for name, granted in (snapshot.permissions or {}).items() if not granted]:
        sentence = f"IAM does not grant {', '.join(missing)}."
        yield Finding(Light.ATTENTION, "permission missing", sentence, advice.PERMISSION)
    planned = snapshot.description.next_rotation if snapshot.description else None
    if planned is not None and planned < now:
        sentence = f"The key was to be rotated at {moment(planned)}; gcloud kms keys describe shows its plan."
        yield Finding(Light.ATTENTION, "rotation overdue", sentence)
    if snapshot.problems:
        yield Finding(Light.ATTENTION, "not all could be read or kept", _cut("; ".join(snapshot.problems)))


def _of_canaries(snapshot: KeySnapshot) -> Iterator[Finding]:
    """One finding for each reason, whatever the number of versions."""
    failed: dict[Reason, dict[str, str]] = {}
    for canary in snapshot.canaries:
        if failure := canary.call.failure:
            failed.setdefault(failure.reason, {})[canary.version] = failure.detail
    for reason, details in failed.items():
        what = f"What {of_versions(details)} encrypted cannot be decrypted: {next(iter(details.values()))}"
        if reason in LOST:
            yield Finding(Light.FAILING, f"canary lost, {reason}", _cut(what), advice.LOST)
        else:
            yield Finding(Light.ATTENTION, f"canary not decrypted, {reason}", _cut(what), advice.BY_REASON[reason])


def of_state(state: BackendState) -> Iterator[Finding]:
    """Of the last read of a backend."""
    problems = _cut("; ".join(state.problems))
    if state.health is None:
        yield Finding(Light.FAILING, "down", problems, advice.BACKEND_DOWN)
        return
    if state.health.mode is not CryptoMode.KMS:
        sentence = "New data keys are wrapped by a key on its own disk, not by KMS."
        yield Finding(Light.FAILING, f"mode is {state.health.mode}", sentence, advice.NOT_KMS)
    if not state.health.ready:
        yield Finding(Light.FAILING, "not ready", "It can neither encrypt nor decrypt.", advice.NOT_READY)
    if problems:
        yield Finding(Light.ATTENTION, "not all could be read", problems)


def of_versions(numbers: Collection[str]) -> str:
    """`version 3`, `versions 3, 2, 1`, `versions 9, 8, 7, 6, 5 and 4 more`."""
    named, more = list(numbers)[:_NAMED], len(numbers) - _NAMED
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(named)}{f' and {more} more' if more > 0 else ''}"


def _cut(text: str) -> str:
    return text if len(text) <= SENTENCE else f"{text[:SENTENCE]}…"
