"""The backend's metrics, by the names of the contract, and what `/healthz` says of the keyring's database.

The keyring is read from its database at each check, never at a scrape.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.backend.keyring import Keyring
from services.backend.records import RECORDS_TABLE
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    KMS_DATA_KEY_ENCRYPTIONS,
    KMS_DATA_KEYS,
    KMS_DATA_KEYS_MISSING,
    KMS_DATA_KEYS_RESTORED,
    KMS_DATA_KEYS_UNUSABLE,
    KMS_KEYRING_ROWS_UNREADABLE,
    KMS_LOCAL_KEY_MISSING,
    KMS_ROTATION_FAILURES,
    KMS_ROTATION_IN_PROGRESS,
    KMS_ROTATION_LAST_FAILURE,
    KMS_ROTATION_LAST_SUCCESS,
)
from shared.keyring.database import Database, DatabaseError
from shared.keyring.rotation_metrics import KeyringMetrics, read_keyring_metrics

_MAX_NAMED: Final = 3

log = structlog.get_logger(__name__)


class KeyringPoller:
    """The keyring as it was read last: a scrape shows any runner's work, and reads nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.snapshot: KeyringMetrics | None = None
        """None if the database could not be read: nothing is shown rather than what was."""

    async def poll(self) -> None:
        before, now = self.snapshot, None
        try:
            now = await self._database.read(partial(read_keyring_metrics, records=RECORDS_TABLE))
        except DatabaseError as error:
            if before is not None:
                log.warning("keyring database cannot be read; its metrics are absent", error=str(error))
        except Exception:  # a defect, or a row that nobody foresaw, must end neither the polls nor the start
            log.exception("reading the keyring failed unexpectedly; its metrics are absent")
        self.snapshot = now
        if now:
            _log_new_problems(before, now)

    def list_problems(self) -> list[str]:
        """What is wrong in the database, for `/healthz`: a sentence each."""
        if self.snapshot is None:
            return []
        missing, unreadable = self.snapshot.missing_data_keys, self.snapshot.unreadable_rows
        found = []
        if missing:
            found.append(
                f"the database lacks {_format_count(missing, 'data key')} that records need: {_format_ids(missing)}"
            )
        if unreadable:
            named = _format_ids([f"{row_id} ({error})" for row_id, error in unreadable.items()])
            found.append(f"{_format_count(unreadable, 'row')} of the keyring cannot be read: {named}")
        return found

    async def run(self, interval: float) -> None:
        """Reads it after each `interval` seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.poll()


def _log_new_problems(previous: KeyringMetrics | None, current: KeyringMetrics) -> None:
    for row_id, error in current.unreadable_rows.items():
        if previous is None or row_id not in previous.unreadable_rows:
            log.error("keyring row cannot be read", row_id=row_id, error=error)
    for data_key_id in current.missing_data_keys:
        if previous is None or data_key_id not in previous.missing_data_keys:
            log.error("data key that records need is missing in the database", data_key=data_key_id)


def _format_count(items: Sized, noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _format_ids(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    return ", ".join(ids[:_MAX_NAMED]) + more


def register_metrics(registry: CollectorRegistry, keyring: Keyring, poller: KeyringPoller) -> Callable[[], None]:
    """Registers every metric. Returns what to call at each failed decryption of a record."""
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        (CRYPTO_MODE, "What wraps new data keys: 0 the local key, 1 KMS.", lambda: keyring.mode.metric_value),
        (CRYPTO_READY, "1 while a data key can be used, else 0.", lambda: keyring.is_ready),
        (
            CRYPTO_INIT_TIMESTAMP,
            "When mode or readiness last changed, the start included; unix time.",
            lambda: keyring.initialised_at,
        ),
        (
            KMS_DATA_KEYS_UNUSABLE,
            "Data keys that this instance cannot unwrap.",
            lambda: len(keyring.unwrap_errors),
        ),
        (
            KMS_LOCAL_KEY_MISSING,
            "1 while there is no local key, so that a restart in an outage of KMS can write nothing; else 0.",
            lambda: keyring.is_local_key_missing,
        ),
    )
    for name, meaning, value in gauges:
        Gauge(name, meaning, registry=registry).set_function(value)
    errors = Counter(
        CRYPTO_DECRYPTION_ERRORS,
        "Reads of a record that failed: its data key cannot be unwrapped, or it is corrupt.",
        registry=registry,
    )
    registry.register(_KeyringCollector(keyring, poller))
    return errors.inc


class _KeyringCollector(Collector):
    """What this instance put back, and the keyring's metrics as last read, if it could be read."""

    def __init__(self, keyring: Keyring, poller: KeyringPoller) -> None:
        self._keyring, self._poller = keyring, poller

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            KMS_DATA_KEYS_RESTORED,
            "Rows of data keys that the database lost and this instance put back from memory.",
            self._keyring.restored_count,
        )
        snapshot = self._poller.snapshot
        if snapshot is None:
            return
        keys = GaugeMetricFamily(
            KMS_DATA_KEYS, "Data keys by version of the KMS key; 0: the local key.", labels=["kek_version", "status"]
        )
        for (version, status), number in sorted(snapshot.data_keys.items()):
            keys.add_metric([version or "unreadable", status], number)
        success = GaugeMetricFamily(
            KMS_ROTATION_LAST_SUCCESS, "When a rotation last succeeded; unix time.", labels=["type"]
        )
        for type_, at in snapshot.last_success.items():
            success.add_metric([type_], at)
        failures = CounterMetricFamily(KMS_ROTATION_FAILURES, "What failed in rotations, by step.", labels=["step"])
        for step, number in snapshot.failures_by_step.items():
            failures.add_metric([step], number)
        yield from (keys, success, failures)
        if snapshot.encryptions is not None:
            yield GaugeMetricFamily(
                KMS_DATA_KEY_ENCRYPTIONS,
                "Encryptions with the active data key; the limit is 2^32.",
                snapshot.encryptions,
            )
        yield GaugeMetricFamily(
            KMS_DATA_KEYS_MISSING,
            "Data keys that records need and the database lacks.",
            len(snapshot.missing_data_keys),
        )
        yield GaugeMetricFamily(
            KMS_KEYRING_ROWS_UNREADABLE,
            "Rows of the keyring that another program got wrong.",
            len(snapshot.unreadable_rows),
        )
        yield GaugeMetricFamily(
            KMS_ROTATION_IN_PROGRESS, "1 while a rotation runs, or is unfinished.", snapshot.is_in_progress
        )
        if snapshot.last_failure is not None:
            yield GaugeMetricFamily(
                KMS_ROTATION_LAST_FAILURE, "When a step of a rotation last failed; unix time.", snapshot.last_failure
            )
