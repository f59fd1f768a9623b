"""The backend's metrics, by the names of the contract, and what `/healthz` says of the keyring's database.

The keyring is read from its database at each check, never at a scrape.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.backend.keyring import Keyring
from services.backend.records import RECORDS_TABLE
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_METRICS,
    CRYPTO_MODE,
    CRYPTO_READY,
    KEYRING_METRICS,
    KMS_DATA_KEY_ENCRYPTIONS,
    KMS_DATA_KEY_ROW_BROKEN,
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
_MAX_BROKEN_SERIES: Final = 100
"""So that a whole table that is changed stays within what a scrape may have."""
_FAMILIES: Final = {**CRYPTO_METRICS, **KEYRING_METRICS}

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
    errors = Counter(CRYPTO_DECRYPTION_ERRORS, CRYPTO_METRICS[CRYPTO_DECRYPTION_ERRORS].meaning, registry=registry)
    registry.register(_KeyringCollector(keyring, poller))
    return errors.inc


class _KeyringCollector(Collector):
    """What this instance knows by itself, and the keyring as it was read last, if it could be."""

    def __init__(self, keyring: Keyring, poller: KeyringPoller) -> None:
        self._keyring, self._poller = keyring, poller

    def collect(self) -> Iterator[Metric]:
        for name, value in self._list_values():
            about = _FAMILIES[name]
            create = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = create(name, about.meaning, labels=about.labels)
            for labels, number in value.items() if isinstance(value, Mapping) else [((), value)]:
                family.add_metric(labels, number)
            yield family

    def _list_values(self) -> Iterator[tuple[str, float | Mapping[tuple[str, ...], float]]]:
        """The names, and the value of each, or one for each value of its labels."""
        keyring, snapshot = self._keyring, self._poller.snapshot
        yield CRYPTO_MODE, keyring.mode.metric_value
        yield CRYPTO_READY, keyring.is_ready
        yield CRYPTO_INIT_TIMESTAMP, keyring.initialised_at
        yield KMS_DATA_KEYS_UNUSABLE, len(keyring.unwrap_errors)
        yield KMS_DATA_KEY_ROW_BROKEN, {(name[:64],): 1 for name in list(keyring.broken_rows)[:_MAX_BROKEN_SERIES]}
        yield KMS_LOCAL_KEY_MISSING, keyring.is_local_key_missing
        yield KMS_DATA_KEYS_RESTORED, keyring.restored_count
        if snapshot is None:
            return
        in_order = sorted(snapshot.data_keys.items())
        yield KMS_DATA_KEYS, {(version or "unreadable", status): number for (version, status), number in in_order}
        yield KMS_ROTATION_LAST_SUCCESS, {(type_,): at for type_, at in snapshot.last_success.items()}
        yield KMS_ROTATION_FAILURES, {(step,): number for step, number in snapshot.failures_by_step.items()}
        if snapshot.encryptions is not None:
            yield KMS_DATA_KEY_ENCRYPTIONS, snapshot.encryptions
        yield KMS_DATA_KEYS_MISSING, len(snapshot.missing_data_keys)
        yield KMS_KEYRING_ROWS_UNREADABLE, len(snapshot.unreadable_rows)
        yield KMS_ROTATION_IN_PROGRESS, snapshot.is_in_progress
        yield KMS_ROTATION_LAST_FAILURE, {(type_,): at for type_, at in snapshot.last_failure.items()}
