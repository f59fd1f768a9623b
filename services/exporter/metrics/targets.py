"""The metrics of one target and of one service's backend: results in, Prometheus's families out.

The families are built from plain numbers each time, so what was before the last inspection or read cannot stay exposed,
and all metrics of a target disappear with it. Changed on the event loop, read from the thread that encodes.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from services.exporter.model import BackendState, Call, KeyInspection, KeyRead, Operation, ProbeResult, TargetKey
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_METRICS,
    CRYPTO_MODE,
    CRYPTO_READY,
    KEYRING_METRICS,
)
from shared.kms.port import VersionState
from shared.kms.reason import Cause, Reason

CRYPTO_BACKEND_UP = "crypto_backend_up"
CRYPTO_BACKEND_METRICS_UP = "crypto_backend_metrics_up"
CRYPTO_MODE_UNKNOWN = "crypto_mode_unknown"
_BACKEND_FAMILIES: Final = {
    CRYPTO_BACKEND_UP: "1 if the health check could be read in time.",
    CRYPTO_BACKEND_METRICS_UP: "1 if the backend's metrics could be read in time; absent without `metrics_url`.",
    CRYPTO_MODE_UNKNOWN: "1 while the health document names a mode that is unknown.",
    **{name: f"{family.meaning}, as the backend says." for name, family in (CRYPTO_METRICS | KEYRING_METRICS).items()},
}
"""Their help texts."""


class BackendMetrics:
    """Builds the families from the last states each time, so that none of them can be stale."""

    def __init__(self) -> None:
        self.version = 0
        """Grows after each change."""
        self.states: Sequence[BackendState] = ()

    def set_states(self, states: Sequence[BackendState]) -> None:
        """Replaces all that was shown; a replica that is not among `states` disappears."""
        self.states = states
        self.version += 1

    def collect(self) -> Iterator[Metric]:
        """One sample of a family for each replica that has it; none before the first read."""
        families = {name: _create_family(name, text) for name, text in _BACKEND_FAMILIES.items()}
        for state in self.states:
            labels = {"service": state.service} | ({"replica": state.replica} if state.replica else {})
            for name, value in _list_values(state).items():
                if value is not None:
                    families[name].add_sample(name, labels, value)
            for name, series in state.keyring.items():
                for values, value in series.items():
                    own = dict(zip(KEYRING_METRICS[name].labels, values, strict=True))
                    families[name].add_sample(name, labels | own, value)
        yield from families.values()


def _list_values(state: BackendState) -> dict[str, float | None]:
    """What is known of a replica; None where it is not."""
    health = state.health
    names_mode = health is not None and (health.mode is not None or health.mode_problem is not None)
    return {
        CRYPTO_BACKEND_UP: health is not None,
        CRYPTO_BACKEND_METRICS_UP: state.metrics_up,
        CRYPTO_MODE: health.mode.metric_value if health and health.mode else None,
        CRYPTO_MODE_UNKNOWN: health.mode is None if health and names_mode else None,
        CRYPTO_READY: health.ready if health else None,
        CRYPTO_INIT_TIMESTAMP: state.init_timestamp,
        CRYPTO_DECRYPTION_ERRORS: state.decryption_errors,
    }


def _create_family(name: str, text: str) -> Metric:
    return (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(name, text)


# 1 s is where KMSHighLatency begins; over 10 s an answer counts as an error in Cloud KMS's SLA.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# As the contract and Prometheus's own clients write them; `le="1.0"` is another series for Prometheus before version 3.
_BOUNDS = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
_WRONG_AAD_GAUGE: Final = {"": True, Reason.PLAINTEXT_MISMATCH: False}
"""The result of the check with a wrong AAD by its reason; for any other reason it is not known."""

_ACTIVE_STATES: Final = {VersionState.USABLE, VersionState.DECRYPT_ONLY, VersionState.DISABLED}

_Labels = tuple[tuple[str, str], ...]
"""Names and values."""


class TargetMetrics:
    """One target; every counter starts at 0, so that a first failure is an increase, not a beginning."""

    def __init__(self, service: str, target: str, key: TargetKey) -> None:
        self.key = key
        self.version = 0
        """Grows after each change."""
        self._labels = {"service": service, "target": target}
        self._probes = 0
        self._success: bool | None = None
        self._last_success: float | None = None
        self._operations: Counter[str] = Counter(dict.fromkeys([*Operation, *KeyRead], 0))
        self._failures = Counter({(operation, reason): 0 for operation in Operation for reason in Reason})
        self._durations = {operation: _DurationHistogram() for operation in Operation}
        self._inspection: KeyInspection | None = None
        self._failed_call: Call | None = None
        """Of the last round trip."""
        self._failed_since_inspection = False
        """Whether a round trip failed at the last inspection or since: a canary may fail because the whole key does."""

    def add_probe(self, result: ProbeResult) -> None:
        self._probes += 1
        for call in result.calls:
            self._count_call(call)
        self._failed_call = result.failed_call
        self._success = result.failed_call is None
        if self._success:
            self._last_success = result.ended_at
        else:
            self._failed_since_inspection = True
        self.version += 1

    def expire_success(self) -> bool:
        """The last round trip is too long ago to be a success. Returns whether that is a change."""
        if not self._success:
            return False
        self._success = False
        self.version += 1
        return True

    def add_inspection(self, inspection: KeyInspection) -> None:
        """Counts the calls of an inspection, and exposes the key as it was read; what is not known disappears."""
        for call in (inspection.encrypt_call, *(canary.call for canary in inspection.canaries)):
            if call:
                self._count_call(call)
        if inspection.wrong_aad_check:
            self._count_call(
                inspection.wrong_aad_check, has_duration=False
            )  # a refusal, whose duration says nothing of a decryption
        self._operations.update(inspection.call_counts)
        self._inspection = inspection
        self._failed_since_inspection = self._success is False
        self.version += 1

    def count_reads(self, reads: Sequence[KeyRead]) -> None:
        self._operations.update(reads)
        self.version += 1

    def _count_call(self, call: Call, *, has_duration: bool = True) -> None:
        self._operations[call.operation] += 1
        if call.failure is not None:
            self._failures[call.operation, call.failure.reason] += 1
        if has_duration and (call.failure is None or call.failure.reason is Reason.TIMEOUT):
            self._durations[call.operation].observe(call.seconds)

    def collect(self) -> Iterator[Metric]:
        """Every family of a target, also those of which it has no sample now."""
        yield self._show(
            "kms_probe_success", "1 if the last round trip succeeded, not longer ago than two intervals.", self._success
        )
        yield self._show(
            "kms_probe_last_success_timestamp_seconds",
            "Unix time of the last round trip that succeeded; absent until the first.",
            self._last_success,
        )
        yield self._show("kms_probes_total", "Round trips tried.", self._probes)
        yield self._show(
            "kms_probe_failures_total",
            "Calls that failed, by operation and reason.",
            {(("operation", operation), ("reason", reason)): n for (operation, reason), n in self._failures.items()},
        )
        failed, failure = self._failed_call, self._failed_call and self._failed_call.failure
        yield self._show(
            "kms_probe_failure_info",
            "1 while the last round trip failed so; the cause is empty where the reason says all that is known.",
            {(("operation", failed.operation), ("reason", failure.reason), ("cause", failure.cause)): 1}
            if failed and failure
            else None,
        )
        quota = failure.values if failure and failure.cause is Cause.RATE_LIMIT else {}
        names = {"quota": "quota_metric", "consumer": "consumer", "location": "quota_location"}
        yield self._show(
            "kms_probe_quota_info",
            "1 while the last round trip was refused for a quota; its labels say which, whose and where.",
            {tuple((label, quota.get(name, "")) for label, name in names.items()): 1} if quota else None,
        )
        yield self._show(
            "kms_operations_total",
            "Calls to KMS, those that only read the key included.",
            {(("operation", operation),): n for operation, n in self._operations.items()},
        )
        durations = HistogramMetricFamily(
            "kms_operation_duration_seconds",
            "Duration of the calls that succeeded, and of those that timed out, at their full length.",
            labels=[*self._labels, "operation"],
        )
        for operation, measured in self._durations.items():
            durations.add_metric([*self._labels.values(), operation], measured.buckets(), measured.sum)
        yield durations
        yield from self._collect_key()

    def _collect_key(self) -> Iterator[Metric]:
        """What the last inspection found; nothing of an earlier one."""
        inspection = self._inspection
        # With the first inspection the account is known: before it, this would be another series.
        info = ("provider", self.key.provider), ("key", self.key.name)
        yield self._show(
            "kms_target_info",
            "1; its labels name the key and the account that the exporter has.",
            {(*info, ("account", inspection.account)): 1} if inspection else None,
        )
        key = inspection.description if inspection else None
        versions = key.versions if key else ()
        primary = key.find_version(key.primary_version) if key else None
        yield self._show(
            "kms_key_primary_version",
            "Number of the version that encrypts; absent where the provider does not number versions.",
            primary.number if primary else None,
        )
        yield self._show(
            "kms_key_primary_version_info",
            "1; its label names the version that encrypts.",
            {(("version", key.primary_version),): 1} if key and key.primary_version else None,
        )
        states = Counter(version.state for version in versions)
        yield self._show(
            "kms_key_versions",
            "Versions of the key by state.",
            {(("state", state),): states[state] for state in VersionState} if key else None,
        )
        levels = Counter(one.protection_level for one in versions if one.state in _ACTIVE_STATES)
        yield self._show(
            "kms_key_active_versions",
            "Versions that exist and are not to be destroyed, by protection level: what a provider charges for.",
            {(("protection_level", level),): number for level, number in levels.items()},
        )
        yield self._show(
            "kms_key_next_rotation_timestamp_seconds",
            "Unix time of the next scheduled rotation; absent if none is scheduled.",
            key.next_rotation_at if key else None,
        )
        yield self._show(
            "kms_key_version_destroy_timestamp_seconds",
            "Unix time at which a version will be destroyed; only while that is scheduled.",
            {(("version", one.id),): one.destroy_at for one in versions if one.destroy_at is not None},
        )
        yield self._show(
            "kms_key_hsm_disable_timestamp_seconds",
            "Unix time at which the single-tenant HSM instance of the key is disabled unless it is refreshed.",
            inspection.key_store.disable_at if inspection and inspection.key_store else None,
        )
        # A round trip that succeeded since the inspection proves what it uses, so that no alert outlives its cause.
        is_proven = (
            bool(self._success) and inspection is not None and (self._last_success or 0.0) > inspection.inspected_at
        )
        proven = self.key.profile.round_trip_permissions if is_proven else ()
        permissions = (inspection and inspection.permissions) or {}
        yield self._show(
            "kms_key_permission",
            "1 if the account has the permission on the key.",
            {(("permission", name),): granted or name in proven for name, granted in permissions.items()},
        )
        canaries = [
            (canary.version, _get_reason(canary.call))
            for canary in (inspection.canaries if inspection else ())
            if not (self._failed_since_inspection and canary.call.failure and canary.call.failure.reason.concerns_data)
        ]
        yield self._show(
            "kms_canary_success",
            "1 if a ciphertext of an older version could be decrypted; if not, the label gives the reason.",
            {(("version", version), ("reason", reason)): not reason for version, reason in canaries},
        )
        unwatched = inspection.versions_without_canary if inspection else None
        yield self._show(
            "kms_key_versions_without_canary",
            "Older versions, not destroyed, of which no canary is kept.",
            None if unwatched is None else len(unwatched),
        )
        wrong_aad = inspection.wrong_aad_check if inspection else None
        yield self._show(
            "kms_wrong_aad_refused",
            "1 if KMS refused to decrypt with other authenticated data; absent where that could not be checked.",
            _WRONG_AAD_GAUGE.get(_get_reason(wrong_aad)) if wrong_aad else None,
        )
        problems = set(inspection.problems) - set(inspection.call_problems if is_proven else ()) if inspection else None
        yield self._show(
            "kms_key_inspection_problems",
            "What could not be read of the key, what puts it at risk, and what is wrong with the file of its canaries.",
            None if problems is None else len(problems),
        )

    def _show(self, name: str, text: str, value: float | Mapping[_Labels, float] | None) -> Metric:
        """The family with one value of the target, with one for each of further labels, or without a sample."""
        family = _create_family(name, text)
        samples = value if isinstance(value, Mapping) else {} if value is None else {(): value}
        for labels, number in samples.items():
            family.add_sample(name, {**self._labels, **dict(labels)}, number)
        return family


class _DurationHistogram:
    def __init__(self) -> None:
        self.sum = 0.0
        self._counts = [0] * len(_BOUNDS)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        return list(zip(_BOUNDS, accumulate(self._counts), strict=True))


def _get_reason(call: Call) -> str:
    return call.failure.reason if call.failure else ""
