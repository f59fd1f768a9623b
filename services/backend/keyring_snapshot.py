"""Reads the keyring's metrics from its database at each check: a scrape shows any runner's work, and reads nothing."""

import asyncio
from collections.abc import Sequence, Sized
from functools import partial
from typing import Final

import structlog

from services.backend.records import RECORDS_TABLE
from shared.keyring.database import Database, DatabaseError
from shared.keyring.rotation_metrics import KeyringMetrics, read_keyring_metrics

_MAX_NAMED: Final = 3

log = structlog.get_logger(__name__)


class KeyringPoller:
    """The keyring as it was read last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.snapshot: KeyringMetrics | None = None
        """None if the database could not be read: nothing is shown rather than what was."""

    async def poll(self) -> None:
        """Reads it now."""
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
    """Logs what is new since the last poll."""
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
