"""What is wrong with a key or a backend, and what to do about it: results in, findings with advice out. Pure."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from services.exporter.history import MAX_TEXT_LENGTH, FailureSpan, TargetHistory
from services.exporter.model import BackendState, Failure, KeyInspection, TargetKey
from shared.backend_contract import KMS_DATA_KEY_ENCRYPTIONS, MAX_DATA_KEY_ENCRYPTIONS, CryptoMode
from shared.config.yaml_file import read_yaml
from shared.credentials import PROJECTED_TOKEN, Credentials
from shared.kms.fixes import Fix, KmsProfile
from shared.kms.port import ConnectivityPhase, KeyStoreKind
from shared.kms.reason import Cause, Reason, Scope
from shared.web.time_format import format_utc_time

RUNBOOK_FILE: Final = "docs/KMS_OPERATIONS.md"


@dataclass(frozen=True, slots=True)
class Advice:
    text: str
    section: str
    """The heading in the runbook: a reason, an alert, or that of all causes."""

    @property
    def anchor(self) -> str:
        """The heading's anchor, as GitHub makes it of words."""
        return self.section.lower().replace(" ", "-")


ADVICE: Final = {name: Advice(**row) for name, row in read_yaml(Path(__file__).with_name("advice.yml")).items()}
HSM_NOTICE: Final = 7 * 86400.0
"""Seconds, as the alert has them."""


def advise_on_failure(failure: Failure | FailureSpan, profile: KmsProfile) -> Advice:
    """What to do about a failed call."""
    section = "What a cause means" if failure.cause else failure.reason
    return Advice(profile.advise(failure.reason, failure.cause), section)


def describe_connectivity(connectivity: Sequence[ConnectivityPhase], cause: Cause = Cause.NONE) -> str | None:
    """Where a call with this cause failed, in a sentence; None if nothing was measured.

    It is the network between us and KMS, KMS itself, or something between KMS and an external key manager.
    """
    if not connectivity:
        return None
    durations = ", ".join(
        f"{phase.name.upper()} {phase.seconds * 1000:.0f} ms" for phase in connectivity if not phase.error
    )
    failed = next((phase for phase in connectivity if phase.error), None)
    if failed and failed.name != KeyStoreKind.EKM:
        before = f" (before it: {durations})" if durations else ""
        return f"It is the network, at {failed.name.upper()}: {failed.error}{before}"
    reached = connectivity[-1].name == KeyStoreKind.EKM and not failed
    works = f"The network works{', and KMS reaches the external key manager' if reached else ''} ({durations})"
    if failed:
        return f"{works}: it is between KMS and the external key manager: {failed.error}"
    if cause in {Cause.SEALED, Cause.STANDBY, Cause.AUDIT_BLOCKED}:
        return f"{works}: KMS answers, and serves nobody."
    if cause.scope is not Scope.KEY_MANAGER:
        return f"{works}: it is KMS that does not answer."
    return f"{works}: it is {'this key there' if reached else 'between KMS and the external key manager'}."


_MAX_NAMED_VERSIONS: Final = 5
"""Versions named in a sentence."""


class HealthStatus(IntEnum):
    """The worst first. The name in lower case is the CSS class of its colour and shape."""

    FAILING = 0
    DEGRADED = 1
    UNKNOWN = 2
    HEALTHY = 3


STATUS_LABELS: Final = {
    HealthStatus.FAILING: "Failing",
    HealthStatus.DEGRADED: "Degraded",
    HealthStatus.UNKNOWN: "Unknown",
    HealthStatus.HEALTHY: "Healthy",
}


@dataclass(frozen=True, slots=True)
class Finding:
    status: HealthStatus
    title: str
    """A reason, or a short phrase."""
    text: str
    advice: Advice | None = None
    connectivity: str | None = None
    """Whether it is the network or KMS."""
    due_at: float | None = None
    """Unix seconds: when what the sentence says will happen."""
    fixes: tuple[Fix, ...] = ()
    """The commands that fix it."""


def build_failure_finding(span: FailureSpan, history: TargetHistory) -> Finding:
    """Of a key whose last round trips failed."""
    advice = advise_on_failure(span, history.key.profile)
    primary = history.inspection.description if history.inspection else None
    return Finding(
        HealthStatus.FAILING,
        f"{span.label} at {span.operation}",
        span.detail,
        advice,
        describe_connectivity(span.connectivity, span.cause),
        fixes=_list_fixes(
            history.key,
            span.reason,
            span.cause,
            **span.values,
            target=history.target,
            version=(primary and primary.primary_version) or "",
            account=history.inspection.account if history.inspection else "",
        ),
    )


def _list_fixes(key: TargetKey, reason: Reason, cause: Cause = Cause.NONE, /, **values: str) -> tuple[Fix, ...]:
    """The commands of the provider's table; `values` as it takes them."""
    return tuple(key.profile.fixes.build(reason, cause, key.name, values))


def build_success_expired_finding(at: float) -> Finding:
    """Of a key whose last round trip succeeded too long ago to count."""
    sentence = f"The last one succeeded at {format_utc_time(at)}; that is too long ago to count."
    return Finding(HealthStatus.FAILING, "no round trip in time", sentence, ADVICE["success_expired"])


def build_stale_finding(text: str) -> Finding:
    """Of a key or backend without a recent result; `text` says since when, without its full stop."""
    sentence = f"{text}; the state may have changed. See the exporter's log."
    return Finding(HealthStatus.DEGRADED, "no recent result", sentence)


def find_key_problems(
    inspection: KeyInspection, now: float, key: TargetKey, *, round_trip_fails: bool = False
) -> Iterator[Finding]:
    """Of the last key inspection; `now` in Unix seconds. No version counts as lost while the last round trip failed."""
    yield from _find_canary_problems(inspection, key, round_trip_fails=round_trip_fails)
    if inspection.wrong_aad_check and (failure := inspection.wrong_aad_check.failure):
        yield Finding(HealthStatus.FAILING, "wrong AAD accepted", _truncate(failure.detail), ADVICE["wrong_aad"])
    versions = inspection.description.versions if inspection.description else ()
    if doomed := {version: version.destroy_at for version in versions if version.destroy_at is not None}:
        first = min(doomed, key=lambda version: doomed[version])
        labels = format_versions([version.label for version in doomed])
        sentence = f"{labels.capitalize()} will be destroyed{', the first' if len(doomed) > 1 else ''}"
        yield Finding(
            HealthStatus.DEGRADED,
            "destruction scheduled",
            sentence,
            ADVICE["destruction"],
            due_at=doomed[first],
            fixes=_list_fixes(key, Reason.KEY_DESTROYED, target=inspection.target, version=first.id),
        )
    held = inspection.key_store
    if held and held.disable_at is not None and now < held.disable_at < now + HSM_NOTICE:
        sentence = _truncate(f"Unless it is refreshed, {held.name} is disabled, and the key with it,")
        yield Finding(HealthStatus.DEGRADED, "HSM instance expires", sentence, ADVICE["hsm"], due_at=held.disable_at)
    yield from _find_ending_credentials(inspection.credentials, now)
    missing = [name for name, granted in (inspection.permissions or {}).items() if not granted]
    store = inspection.description.key_store if inspection.description else None
    if store and store.permission in missing:
        missing.remove(store.permission)
        sentence = f"The account lacks {store.permission} on {store.name}. So nobody checks what holds the key."
        yield Finding(HealthStatus.DEGRADED, "permission missing", _truncate(sentence), ADVICE["key_store"])
    if missing:
        sentence = f"The account lacks {', '.join(missing)}."
        advice = Advice(key.profile.advise(Reason.PERMISSION_DENIED, Cause.ROLE_MISSING), "KMSPermissionMissing")
        fixes = [
            fix
            for name in missing
            for fix in _list_fixes(
                key, Reason.PERMISSION_DENIED, Cause.ROLE_MISSING, permission=name, account=inspection.account
            )
        ]
        once = tuple(dict.fromkeys(fixes))
        yield Finding(HealthStatus.DEGRADED, "permission missing", sentence, advice, fixes=once)
    next_rotation_at = inspection.description.next_rotation_at if inspection.description else None
    if next_rotation_at is not None and next_rotation_at < now:
        sentence = f"The key was to be rotated at {format_utc_time(next_rotation_at)}; {key.profile.rotation_advice}"
        yield Finding(HealthStatus.DEGRADED, "rotation overdue", sentence)
    risk = inspection.description.problem if inspection.description else ""
    if risk:
        yield Finding(HealthStatus.DEGRADED, "key at risk", risk, ADVICE["key_at_risk"])
    if problems := [each for each in inspection.problems if each != risk]:
        yield Finding(HealthStatus.DEGRADED, "not all could be read or kept", _truncate(_join_problems(problems)))


def _join_problems(problems: Sequence[str]) -> str:
    """Those with the same explanation share it: where KMS is away, each read says so."""
    subjects: dict[str, list[str]] = {}
    for problem in problems:
        subject, colon, explanation = problem.partition(": ")
        subjects.setdefault(colon + explanation, []).append(subject)
    return "; ".join("; ".join(names) + explanation for explanation, names in subjects.items())


def _find_ending_credentials(credentials: Credentials, now: float) -> Iterator[Finding]:
    """As the alert KMSCredentialExpiring finds them."""
    for credential, validity in credentials.items():
        if validity and validity.ends_soon(now, 10 if credential == PROJECTED_TOKEN else 4):
            sentence, advice = f"Unless it is renewed, the {credential} ends", ADVICE["credential"]
            yield Finding(HealthStatus.DEGRADED, "credential expiring", sentence, advice, due_at=validity.ends_at)


def _find_canary_problems(inspection: KeyInspection, key: TargetKey, *, round_trip_fails: bool) -> Iterator[Finding]:
    """One finding for each reason, whatever the number of versions."""
    failed: dict[tuple[Reason, Cause], dict[str, Failure]] = {}
    for canary in inspection.canaries:
        if failure := canary.call.failure:
            failed.setdefault((failure.reason, failure.cause), {})[canary.version] = failure
    for (reason, cause), details in failed.items():
        labels = [inspection.description.get_label(one) if inspection.description else one for one in details]
        version, first = next(iter(details.items()))
        sentence = _truncate(f"What {format_versions(labels)} encrypted cannot be decrypted: {first.detail}")
        values = {**first.values, "target": inspection.target, "version": version, "account": inspection.account}
        fixes = _list_fixes(key, reason, cause, **values)
        if reason.concerns_data and not round_trip_fails:  # as the alert KMSCanaryLost
            title, status, advice = f"canary lost, {first.label}", HealthStatus.FAILING, ADVICE["canary_lost"]
        else:
            advice = advise_on_failure(first, key.profile)
            title, status = f"canary not decrypted, {first.label}", HealthStatus.DEGRADED
        yield Finding(status, title, sentence, advice, fixes=fixes)


def find_backend_problems(state: BackendState) -> Iterator[Finding]:
    """Of the last read of a backend."""
    problems = _truncate("; ".join(state.problems))
    if state.health is None:
        yield Finding(HealthStatus.FAILING, "down", problems, ADVICE["backend_down"])
        return
    if state.health.mode_problem:
        yield Finding(HealthStatus.FAILING, "mode is unknown", problems, ADVICE["unknown_mode"])
        problems = ""
    if state.health.mode is CryptoMode.ENV:
        sentence = "New data keys are wrapped by a key on its own disk, not by KMS."
        yield Finding(
            HealthStatus.FAILING, f"wraps with its local key (mode {state.health.mode})", sentence, ADVICE["not_kms"]
        )
    if not state.health.ready:
        yield Finding(
            HealthStatus.FAILING,
            "not ready",
            "Its health check says that it can neither encrypt nor decrypt.",
            ADVICE["not_ready"],
        )
    encryptions = max(state.keyring.get(KMS_DATA_KEY_ENCRYPTIONS, {}).values(), default=0.0)
    if encryptions > MAX_DATA_KEY_ENCRYPTIONS / 2:
        sentence = (
            f"The active data key has encrypted {encryptions:,.0f} times, of {MAX_DATA_KEY_ENCRYPTIONS:,} at most."
        )
        yield Finding(HealthStatus.DEGRADED, "data key is used up soon", sentence, ADVICE["used_up"])
    if problems:
        yield Finding(HealthStatus.DEGRADED, "not all could be read", problems)


def format_versions(labels: Collection[str]) -> str:
    """`version 3`, `versions 3, 2, 1`, `versions 9, 8, 7, 6, 5 and 4 more`."""
    named, more = list(labels)[:_MAX_NAMED_VERSIONS], len(labels) - _MAX_NAMED_VERSIONS
    return f"version{'s' if len(labels) > 1 else ''} {', '.join(named)}{f' and {more} more' if more > 0 else ''}"


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else f"{text[:MAX_TEXT_LENGTH]}…"
