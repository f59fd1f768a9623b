"""What the board says of one target or backend: a record in, a light with its findings out. Pure."""

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from services.exporter.history import BackendRecord, TargetRecord
from services.exporter.model import BackendState, Canary, KeySnapshot
from services.exporter.web.findings import (
    WORDS,
    Finding,
    Light,
    of_failures,
    of_old_news,
    of_overdue,
    of_snapshot,
    of_state,
)
from services.exporter.web.words import moment
from shared.contract import KMS_DATA_KEYS, KMS_ROTATION_LAST_SUCCESS
from shared.kms.provider import KeyVersion

LISTED: Final = 10
"""Versions and canaries shown of a key."""
_DIGITS: Final = re.compile(r"(\d+)")
Record = TargetRecord | BackendRecord


@dataclass(frozen=True, slots=True)
class MaxAge:
    """Seconds for which what was found last counts."""

    stale: float
    """After these it says nothing any more."""
    overdue: float
    """After these a right round trip is no success any more."""


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


def head(record: Record, now: float, max_age: MaxAge) -> Head:
    """The light of a target, a backend or a replica of one.

    Args:
        record: what is known.
        now: Unix seconds.
        max_age: for how long what was found last counts.
    """
    if isinstance(record, TargetRecord):
        return _of_target(record, now, max_age)
    return _of_backend(record, now, max_age)


def turned(record: Record, now: float, max_age: MaxAge) -> tuple[bool, bool, bool]:
    """What time alone makes of a record: whether its news are old, a round trip is overdue, a rotation is."""
    if isinstance(record, BackendRecord):
        return record.at is not None and record.at + max_age.stale < now, False, False
    planned = record.snapshot.description.next_rotation if record.snapshot and record.snapshot.description else None
    return _stale(record, now, max_age), _overdue(record, now, max_age), planned is not None and planned < now


def _stale(record: TargetRecord, now: float, max_age: MaxAge) -> bool:
    return record.last is not None and record.last.at + max_age.stale < now


def _overdue(record: TargetRecord, now: float, max_age: MaxAge) -> bool:
    return record.last is not None and record.last.failed is None and record.last.at + max_age.overdue < now


def _of_target(record: TargetRecord, now: float, max_age: MaxAge) -> Head:
    findings = [] if record.snapshot is None else list(of_snapshot(record.snapshot, now))
    if record.last is None:
        light = Light.UNKNOWN
    elif record.last.failed and record.failures:
        light = Light.FAILING
        findings.append(of_failures(record.failures[-1]))
    else:
        light = Light.WELL
    if record.last and _overdue(record, now, max_age):
        findings.append(of_overdue(record.last.at))
    elif record.last and _stale(record, now, max_age):
        findings.append(of_old_news(f"No round trip since {moment(record.last.at)}"))
    return _head("key", record.target, record.service, light, findings, record)


def _of_backend(record: BackendRecord, now: float, max_age: MaxAge) -> Head:
    findings = [] if record.state is None else list(of_state(record.state))
    light = Light.UNKNOWN if record.state is None else Light.WELL
    if record.at is not None and record.at + max_age.stale < now:
        findings.append(of_old_news(f"Not read since {moment(record.at)}"))
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
    known_by = sha256(f"{service}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    text = "\n".join([name, service, WORDS[light], *(finding.title for finding in worst_first)]).casefold()
    return Head(f"{kind}-{known_by}", name, service, light, worst_first, record, text, (light, _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = _DIGITS.split(name.casefold())
    return [(int(part) if part.isdecimal() and len(part) < 20 else 0, part) for part in parts]


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


def data_keys(state: BackendState) -> str | None:
    """How many data keys each version wraps, the newest first; None where the backend does not say."""
    wrapped: dict[str, float] = {}
    for (version, _status), number in state.keyring.get(KMS_DATA_KEYS, {}).items():
        wrapped[version] = wrapped.get(version, 0.0) + number
    counted = sorted(
        ((version, number) for version, number in wrapped.items() if number), key=lambda it: -_number(it[0])
    )
    by = [f"{number:.0f} under {'the local key' if v == '0' else f'version {v}'}" for v, number in counted]
    more = [f"and {len(by) - LISTED} more"] if len(by) > LISTED else []
    return " · ".join(by[:LISTED] + more) or None


def last_rotated(state: BackendState) -> float | None:
    """When a rotation of whatever type last succeeded, Unix seconds; None where the backend does not say."""
    return max(state.keyring.get(KMS_ROTATION_LAST_SUCCESS, {}).values(), default=None)


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
