"""One round trip through a key → one ProbeResult for all its callers, the schedule and `GET /probe` alike.

Random plaintext and AAD are encrypted, decrypted and compared; each call is timed, and whatever it raises is a failure
with a reason. A caller that comes while a probe runs waits for that one; one that is cancelled ends nothing.

What may explain a failure is asked after its result was added, never in the probe's time: where the service does not
answer, the connectivity is measured, and the history gets it; a denial that the service does not explain is diagnosed.
The next round trips that fail in the same way have what was found.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from secrets import token_bytes
from typing import Generic, TypeVar

import structlog

from services.exporter.history import TargetHistory
from services.exporter.model import Call, Failure, KeyRead, Operation, ProbeResult
from shared.kms.fixes import GENERIC_PROFILE, KmsProfile
from shared.kms.port import ConnectivityPhase, Diagnosis, KeyStoreKind, KmsError, KmsKey
from shared.kms.reason import Cause, Reason, Scope
from shared.process.concurrency import is_task_cancelled

MIN_DIAGNOSIS_INTERVAL = 60.0
"""Seconds from a diagnosis of a target to its next."""
CONNECTIVITY_MAX_AGE = 60.0
"""Seconds for which measured connectivity is reused for failures of the same reason."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class ProbeClosedError(Exception):
    """The target is watched no more: the exporter stops, or a reload took it out."""

    def __init__(self) -> None:
        super().__init__("this target is not watched any more")


class CoalescedProbe:
    """A target that can be probed at any time.

    Args:
        service: the label.
        target: its name.
        probe: one round trip; bounds itself.
        measure_connectivity: measures the connection to the service; bounds itself.
        add_result: takes each result, once.
        update_result: takes the last result again, once its connectivity is measured.
        semaphore: one for each probe that may run at the same time, of all targets of one endpoint.
        explain_denial: diagnoses why a call that needs a permission is denied; bounds itself.
        min_interval: seconds for which the last result is reused.
        profile: the provider's, for advice.
    """

    def __init__(  # noqa: PLR0913  all by name
        self,
        service: str,
        target: str,
        *,
        probe: Callable[[], Awaitable[ProbeResult]],
        measure_connectivity: Callable[[], Awaitable[tuple[ConnectivityPhase, ...]]],
        explain_denial: Callable[[str], Awaitable[Diagnosis]],
        add_result: Callable[[ProbeResult], None],
        semaphore: asyncio.Semaphore,
        min_interval: float,
        update_result: Callable[[ProbeResult], None] = lambda _: None,
        profile: KmsProfile = GENERIC_PROFILE,
    ) -> None:
        self.started_at: float | None = None
        """When the last probe was given a place, by the loop's clock; None while it waits for one."""
        self._last_result: ProbeResult | None = None

        async def observed() -> ProbeResult:
            self.started_at = None
            async with semaphore:
                self.started_at = asyncio.get_running_loop().time()
                result = self._last_result = self._add_cause(await probe())
            add_result(result)
            self._ask()
            return result

        async def measured() -> tuple[ConnectivityPhase, ...]:
            suspect, measurements, last = self._suspect, self._measurements, self._last_result
            _, failure, phases = await time_call(measure_connectivity, timeout=0)
            if failure:
                log.error(
                    "connectivity measurement failed", target=target, error=failure.detail, exc_info=failure.exception
                )
            if suspect:
                measurements[suspect] = asyncio.get_running_loop().time(), phases or ()
            if last and last is self._last_result:
                update_result(self.add_connectivity(last))
            return phases or ()

        async def diagnosed() -> None:
            if denial := self._denial:
                _, failure, found = await time_call(lambda: explain_denial(denial.permission), timeout=0)
                denial.diagnosis = found  # lost, where the denial has ended
                if failure:
                    log.error("diagnosis failed", target=target, error=failure.detail, exc_info=failure.exception)

        self.service = service
        self.target = target
        self.profile = profile
        self._probe = _CoalescedCall(observed, min_interval)
        self._connectivity = _CoalescedCall(measured, min_interval)
        self._diagnosis = _CoalescedCall(diagnosed, MIN_DIAGNOSIS_INTERVAL)
        self._denial: _Denial | None = None
        self._suspect: Reason | None = None
        """Why the last round trip failed, where the connection may be to blame."""
        self._measurements: dict[Reason, tuple[float, tuple[ConnectivityPhase, ...]]] = {}
        """Of the connection, since it became suspect: by the reason, when it was measured and what was found."""

    async def run(self) -> ProbeResult:
        """For the schedule: joins the running probe, or starts one. Raises ProbeClosedError."""
        return await self._probe.run()

    async def run_or_reuse(self) -> ProbeResult:
        """Run a probe, or return the last one if it ended less than `min_interval` ago. Raises ProbeClosedError."""
        return await self._probe.run_or_reuse()

    async def measure_connectivity(self) -> tuple[ConnectivityPhase, ...]:
        """Measures the connectivity, at most as often as `recent` probes. Raises ProbeClosedError."""
        return await self._connectivity.run_or_reuse()

    async def diagnose(self) -> Diagnosis | None:
        """Why the last round trip was denied; asks, unless that was done within a minute. Raises ProbeClosedError.

        None where the service said it itself, or nothing was denied.
        """
        if self._denial:
            await self._diagnosis.run_or_reuse()
        return self._denial.diagnosis if self._denial else None

    def add_connectivity(self, result: ProbeResult) -> ProbeResult:
        """The result with what was measured since the round trips fail for its reason."""
        failure = result.calls[-1].failure
        if failure is None or failure.reason not in self._measurements:
            return result
        _, phases = self._measurements[failure.reason]
        # What an earlier measurement found is not the service's own word, and ends with it.
        cause = Cause.NONE if failure.cause is _find_network_cause(result.connectivity) else failure.cause
        failure = replace(failure, cause=cause or _find_network_cause(phases))
        return replace(result.with_failure(failure), connectivity=phases)

    def _ask(self) -> None:
        """Starts what may explain the last failure."""
        if self._denial:
            self._diagnosis.start()
        if self._suspect:
            measured_at, _ = self._measurements.get(self._suspect, (-math.inf, ()))
            if asyncio.get_running_loop().time() - measured_at >= CONNECTIVITY_MAX_AGE:
                self._connectivity.start()

    def _add_cause(self, result: ProbeResult) -> ProbeResult:
        call = result.failed_call
        failure = call.failure if call else None
        self._suspect = failure.reason if failure and concerns_connection(failure) else None
        if self._suspect is None:
            self._measurements = {}
        if call is None or failure is None or not failure.is_silent:
            self._denial = None
            return self.add_connectivity(result)
        needed = (self.profile.round_trip_permissions or ("", ""))[call.operation is Operation.DECRYPT]
        permission = failure.values.get("permission", needed)
        if self._denial is None or (self._denial.operation, self._denial.permission) != (call.operation, permission):
            self._denial = _Denial(call.operation, permission)
        if (found := self._denial.diagnosis) is None:
            return result
        detail = f"{found.text}. {self.profile.service_name} says only: {failure.detail}"
        return result.with_failure(
            replace(failure, cause=found.cause, detail=detail, values={**failure.values, **found.values})
        )

    def cancel(self) -> None:
        """Cancels the running probe, so that nobody waits for it any more; no other one starts."""
        for call in (self._probe, self._connectivity, self._diagnosis):
            call.cancel()

    async def close(self) -> None:
        """The same, and waits for its end."""
        self.cancel()
        for call in (self._probe, self._connectivity, self._diagnosis):
            await call.close()


@dataclass(slots=True)
class _Denial:
    """One that the service does not explain, while it lasts."""

    operation: Operation
    permission: str  # that it needs; empty where the provider does not name it
    diagnosis: Diagnosis | None = None


class _CoalescedCall(Generic[T]):
    """Runs a function once for all who call it meanwhile; all of them get its result or its exception."""

    def __init__(self, call: Callable[[], Awaitable[T]], min_interval: float) -> None:
        self._work = call
        self._min_interval = min_interval
        self._task: asyncio.Task[T] | None = None
        self._last_result: tuple[float, T] | None = None
        """When it ended, by the loop's clock, and what it gave."""
        self._closed = False

    async def run(self) -> T:
        if self._closed:
            raise ProbeClosedError
        task = self._task = self._task or asyncio.create_task(self._call_once())
        await asyncio.wait({task})  # unlike `await task`, it does not cancel the task where it is cancelled itself
        if self._closed and task.cancelled():
            raise ProbeClosedError
        return task.result()

    async def run_or_reuse(self) -> T:
        return self._last_result[1] if self._last_result and self._is_fresh else await self.run()

    def start(self) -> None:
        """The same, without waiting for its end; the call raises nothing."""
        if not (self._closed or self._task or self._is_fresh):
            self._task = asyncio.create_task(self._call_once())

    @property
    def _is_fresh(self) -> bool:
        age = asyncio.get_running_loop().time() - self._last_result[0] if self._last_result else math.inf
        return age < self._min_interval and self._task is None

    def cancel(self) -> None:
        self._closed = True
        if self._task:
            self._task.cancel()

    async def close(self) -> None:
        self.cancel()
        if task := self._task:
            await asyncio.wait({task})

    async def _call_once(self) -> T:
        try:
            found = await self._work()
            self._last_result = asyncio.get_running_loop().time(), found
            return found
        finally:
            self._task = None


PLAINTEXT_BYTES = 32
"""The size of a data key, which is what services encrypt with KMS."""
AAD_BYTES = 16


def concerns_connection(failure: Failure) -> bool:
    """Whether the connection to KMS, or from KMS to an external key manager, may be to blame."""
    return failure.reason.scope is Scope.SERVICE or failure.cause.scope is Scope.KEY_MANAGER


def _find_network_cause(phases: Sequence[ConnectivityPhase]) -> Cause:
    return next((phase.cause for phase in phases if phase.error and phase.name != KeyStoreKind.EKM), Cause.NONE)


async def time_call(
    call: Callable[[], Awaitable[T]], *, timeout: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Failure | None, T | None]:
    """How many seconds `call` took, why it failed, or what it answered.

    Raises nothing but cancellation: a defect of our own is a failure like any other.

    Args:
        call: bounds itself by `timeout`.
        timeout: seconds; a call that timed out took at least as many.
        clock: a clock that never jumps.
    """
    begin = clock()
    try:
        answer = await call()
    except KmsError as error:
        cause = Cause.NONE if error.is_silent else error.cause
        failure = Failure(error.reason, error.detail, cause=cause, values=error.values, is_silent=error.is_silent)
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled us; let through, it would leave the last success on show.
        if is_task_cancelled():
            raise
        failure = Failure(Reason.INTERNAL, repr(error), error)
    except Exception as error:  # noqa: BLE001  the reason `internal`; its trace travels in the failure
        failure = Failure(Reason.INTERNAL, repr(error), error)
    else:
        return clock() - begin, None, answer
    seconds = clock() - begin
    if failure.reason is Reason.TIMEOUT:
        # A service may report its own deadline before ours has passed; for us it took at least all of it.
        seconds = max(seconds, timeout)
    return seconds, failure, None


_MIN_EKM_TIMEOUT = 0.2
_CALL_RESERVE = 0.3
"""Seconds that a call may take longer than its timeout."""


@dataclass(slots=True)
class Prober:
    service: str
    target: str
    key: KmsKey
    timeout: float
    """Seconds for each call."""
    clock: Callable[[], float] = time.perf_counter
    wall_clock: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = token_bytes
    get_history: Callable[[], TargetHistory | None] = lambda: None
    """What is known of the target, without the round trip that runs."""
    count_reads: Callable[[Sequence[KeyRead]], None] = lambda _: None
    """Takes the reads that are made beside the round trips."""

    async def probe(self) -> ProbeResult:
        """One round trip, within twice `timeout` and what the port adds to each call's bound.

        Raises nothing but cancellation: a defect of our own is a failure like any other.
        """
        result = await self._run_round_trip()
        failure, history = result.calls[-1].failure, self.get_history()
        if (
            failure
            and failure.reason is Reason.KEY_DISABLED
            and history
            and history.is_disabled_by_key_manager(result.ended_at)
        ):
            return result.with_failure(replace(failure, cause=Cause.EKM_DISABLED))
        return result

    async def _run_round_trip(self) -> ProbeResult:
        plaintext, aad = self.random_bytes(PLAINTEXT_BYTES), self.random_bytes(AAD_BYTES)
        encrypt, encrypted = await self._time_call(
            Operation.ENCRYPT, lambda: self.key.encrypt(plaintext, aad, timeout=self.timeout)
        )
        if encrypted is None:
            return ProbeResult(self.service, self.target, self.wall_clock(), (encrypt,), None)
        decrypt, decrypted = await self._time_call(
            Operation.DECRYPT, lambda: self.key.decrypt(encrypted.ciphertext, aad, timeout=self.timeout)
        )
        if decrypted is not None and decrypted.plaintext != plaintext:
            mismatch = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt gave back another plaintext than was encrypted")
            decrypt = replace(decrypt, failure=mismatch)
        return ProbeResult(
            self.service,
            self.target,
            self.wall_clock(),
            (encrypt, decrypt),
            encrypted.version,
            encrypted.protection_level,
            key_version_number=encrypted.version_number,
        )

    async def measure_connectivity(self, timeout: float) -> tuple[ConnectivityPhase, ...]:
        """The phases to KMS and, where the key has a connection, from KMS to its external key manager.

        Within `timeout` seconds in all. An answer that says nothing of the key manager is no phase.
        """
        begin = self.clock()
        phases = await self.key.measure_connectivity(timeout=0.9 * timeout)
        history = self.get_history()
        connection = history.ekm_connection if history else None
        time_left = timeout - (self.clock() - begin) - _CALL_RESERVE
        if connection is None or any(phase.error for phase in phases) or time_left < _MIN_EKM_TIMEOUT:
            return phases
        self.count_reads([KeyRead.VERIFY_CONNECTIVITY])
        seconds, failure, _ = await time_call(
            lambda: self.key.check_key_store(connection, timeout=time_left), timeout=time_left, clock=self.clock
        )
        if failure is None:
            return (*phases, ConnectivityPhase(KeyStoreKind.EKM, seconds))
        if failure.cause.scope is not Scope.KEY_MANAGER:
            return phases
        return (*phases, ConnectivityPhase(KeyStoreKind.EKM, seconds, failure.detail, failure.cause))

    async def _time_call(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> tuple[Call, T | None]:
        seconds, failure, answer = await time_call(call, timeout=self.timeout, clock=self.clock)
        return Call(operation, seconds, failure), answer
