"""What the board says of one target or backend: a record in, a light with its findings out. Pure."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final

from services.exporter.history import SENTENCE, BackendRecord, TargetRecord
from services.exporter.model import BackendState, Canary, KeySnapshot
from services.exporter.web import advice
from services.exporter.web.advice import Advice
from services.exporter.web.words import moment
from shared.contract import CryptoMode
from shared.kms.provider import KeyVersion
from shared.kms.reason import Reason

LISTED: Final = 20
"""Versions and canaries shown of a key."""
_DIGITS: Final = re.compile(r"(\d+)")
_NAMED: Final = 5
"""Versions named in a sentence."""
_OF_THE_VERSION: Final = {Reason.KEY_DISABLED, Reason.KEY_DESTROYED}
_PASSING: Final = {Reason.TIMEOUT, Reason.UNAVAILABLE, Reason.QUOTA_EXHAUSTED}
"""They say nothing of the ciphertext."""


Record = TargetRecord | BackendRecord


class Light(IntEnum):
    """How it stands, the worst first. Its name in lower case is the class of its colour and shape."""

    FAILING = 0
    ATTENTION = 1
    UNKNOWN = 2
    WELL = 3


WORDS = {Light.FAILING: "Failing", Light.ATTENTION: "Attention", Light.UNKNOWN: "No news", Light.WELL: "Well"}


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


@dataclass(frozen=True, slots=True)
class Head:
    """What all cards are found and ordered by."""

    id: str
    """Fit for an attribute, whatever the names hold."""
    name: str
    service: str
    light: Light
    findings: tuple[Finding, ...]
    """The worst first."""
    record: Record
    text: str
    """What a filter looks into."""
    order: tuple[Light, list[tuple[int, str]]]
    """The worst first, then by name, `key-2` before `key-10`."""

    @property
    def word(self) -> str:
        """The light in words."""
        return WORDS[self.light]

    @property
    def since(self) -> str:
        """What the record's `since` is about: the light, or only the part of it that probes and reads tell."""
        if isinstance(self.record, BackendRecord):
            return "health as it is since" if self.light is Light.ATTENTION else "since"
        right = self.record.last is None or self.record.last.failed is None
        return "round trips right since" if right and self.light is not Light.WELL else "since"

    @property
    def said(self) -> str:
        """What a screen reader is told when it changes."""
        return ": ".join([self.name, ", ".join([self.word, *(finding.title for finding in self.findings[:1])])])


def head(record: Record, now: float, stale_after: float) -> Head:
    """The light of a target, a backend or a replica of one.

    Args:
        record: what is known.
        now: Unix seconds.
        stale_after: seconds without news after which the last ones say nothing any more.
    """
    if isinstance(record, TargetRecord):
        return _of_target(record, now, stale_after)
    return _of_backend(record, now, stale_after)


def turned(record: Record, now: float, stale_after: float) -> tuple[bool, bool]:
    """What time alone makes of a record: whether its news are old, and whether a rotation is overdue."""
    if isinstance(record, BackendRecord):
        return record.at is not None and record.at + stale_after < now, False
    planned = record.snapshot.description.next_rotation if record.snapshot and record.snapshot.description else None
    stale = record.last is not None and record.last.at + stale_after < now
    return stale, planned is not None and planned < now


def _of_target(record: TargetRecord, now: float, stale_after: float) -> Head:
    findings = [] if record.snapshot is None else list(_of_snapshot(record.snapshot, now))
    if record.last is None:
        light = Light.UNKNOWN
    elif record.last.failed and record.failures:
        light = Light.FAILING
        span = record.failures[-1]
        about = advice.of_the_way(span.way)
        title = f"{span.reason} at {span.operation}"
        advised = advice.of_a_failure(span.reason, span.way)
        findings.append(Finding(light, title, span.detail, advised, about))
    else:
        light = Light.WELL
    if record.last and record.last.at + stale_after < now:
        findings.append(_stale(f"No round trip since {moment(record.last.at)}"))
    return _head("key", record.target, record.service, light, findings, record)


def _of_backend(record: BackendRecord, now: float, stale_after: float) -> Head:
    findings = [] if record.state is None else list(_of_state(record.state))
    light = Light.UNKNOWN if record.state is None else Light.WELL
    if record.at is not None and record.at + stale_after < now:
        findings.append(_stale(f"Not read since {moment(record.at)}"))
    name = record.service if record.replica is None else f"{record.service} {record.replica}"
    return _head("backend", name, record.service, light, findings, record)


def _head(
    kind: str,
    name: str,
    service: str,
    light: Light,
    findings: list[Finding],
    record: Record,
) -> Head:
    worst_first = tuple(sorted(findings, key=lambda finding: finding.light))
    light = min([light, *(finding.light for finding in worst_first)])
    known_by = sha256(f"{kind}\0{service}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    text = "\n".join([name, service, WORDS[light], *(finding.title for finding in worst_first)]).casefold()
    return Head(f"{kind}-{known_by}", name, service, light, worst_first, record, text, (light, _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = _DIGITS.split(name.casefold())
    return [(int(part) if part.isdecimal() and len(part) < 20 else 0, part) for part in parts]


def _stale(sentence: str) -> Finding:
    return Finding(Light.ATTENTION, "no news", f"{sentence}; what is shown may be over. Look at the exporter's log.")


def _of_snapshot(snapshot: KeySnapshot, now: float) -> Iterator[Finding]:
    yield from _of_canaries(snapshot)
    if snapshot.wrong_aad and (failure := snapshot.wrong_aad.failure):
        yield Finding(Light.FAILING, failure.reason, _cut(failure.detail), advice.BY_REASON[failure.reason])
    known = snapshot.description.versions if snapshot.description else ()
    if doomed := {version.number: version.destroy_at for version in known if version.destroy_at is not None}:
        first = min(doomed.values())
        sentence = f"{_of_versions(doomed).capitalize()} will be destroyed{', the first' if len(doomed) > 1 else ''}"
        yield Finding(Light.ATTENTION, "destruction scheduled", sentence, advice.DESTRUCTION, at=first)
    if missing := [name for name, granted in (snapshot.permissions or {}).items() if not granted]:
        sentence = f"IAM does not grant {', '.join(missing)}."
        yield Finding(Light.ATTENTION, "permission missing", sentence, advice.PERMISSION)
    planned = snapshot.description.next_rotation if snapshot.description else None
    if planned is not None and planned < now:
        sentence = f"The key was to be rotated at {moment(planned)}."
        yield Finding(Light.ATTENTION, "rotation overdue", sentence, advice.ROTATION)
    if snapshot.problems:
        yield Finding(Light.ATTENTION, "not all could be read", _cut("; ".join(snapshot.problems)))


def _of_canaries(snapshot: KeySnapshot) -> Iterator[Finding]:
    """One finding for each reason, whatever the number of versions."""
    lost: dict[Reason, dict[str, str]] = {}
    for canary in snapshot.canaries:
        if failure := canary.call.failure:
            lost.setdefault(failure.reason, {})[canary.version] = failure.detail
    for reason, details in lost.items():
        title = "canary not decrypted" if reason in _PASSING else "canary lost"
        what = f"What {_of_versions(details)} encrypted cannot be decrypted: {next(iter(details.values()))}"
        advised = advice.LOST if reason in _OF_THE_VERSION else advice.BY_REASON[reason]
        yield Finding(Light.FAILING, f"{title}, {reason}", _cut(what), advised)


def _of_state(state: BackendState) -> Iterator[Finding]:
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


def protection(record: TargetRecord) -> str | None:
    """The protection level of the version that encrypted last, else of the primary version as it was read."""
    if record.last and record.last.protection_level:
        return record.last.protection_level
    description = record.snapshot.description if record.snapshot else None
    known = {version.number: version.protection_level for version in description.versions} if description else {}
    return known.get(description.primary or "") if description else None


def versions(snapshot: KeySnapshot) -> list[KeyVersion]:
    """The versions of a key, those to be destroyed first, then the newest."""
    known = snapshot.description.versions if snapshot.description else ()
    return sorted(known, key=lambda version: (version.destroy_at is None, -_number(version.number)))


def canaries(snapshot: KeySnapshot) -> list[Canary]:
    """The canaries of a key, those that are lost first, then the newest."""
    return sorted(snapshot.canaries, key=lambda canary: (canary.call.failure is None, -_number(canary.version)))


def _of_versions(numbers: Collection[str]) -> str:
    """`version 3`, `versions 3, 2, 1`, `versions 9, 8, 7, 6, 5 and 4 more`."""
    named, more = list(numbers)[:_NAMED], len(numbers) - _NAMED
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(named)}{f' and {more} more' if more > 0 else ''}"


def _cut(text: str) -> str:
    return text if len(text) <= SENTENCE else f"{text[:SENTENCE]}…"


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
