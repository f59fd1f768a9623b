"""Looks at the keyring in its database at each check, so that a scrape shows what any runner did, and asks nothing."""

import asyncio
from collections.abc import Sequence, Sized
from functools import partial
from typing import Final

import structlog

from services.backend.records import RECORDS
from shared.keyring.database import Database, DatabaseError
from shared.keyring.seen import Seen, seen

_NAMED: Final = 3

log = structlog.get_logger(__name__)


class Look:
    """The last look."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seen: Seen | None = None
        """None where the database could not be read: nothing is shown rather than what was."""

    async def again(self) -> None:
        """Looks now."""
        before, now = self.seen, None
        try:
            now = await self._database.read(partial(seen, records=RECORDS))
        except DatabaseError as error:
            if before is not None:
                log.warning("the keyring's database cannot be read; its metrics are absent", error=str(error))
        except Exception:  # a defect, or a row that nobody foresaw, must end neither the looks nor the start
            log.exception("the keyring was looked at in vain in an unforeseen way; its metrics are absent")
        self.seen = now
        if now:
            _tell(before, now)

    def problems(self) -> list[str]:
        """What is wrong in the database, for `/healthz`: a sentence each."""
        if self.seen is None:
            return []
        missing, unreadable = self.seen.missing, self.seen.unreadable
        found = []
        if missing:
            found.append(f"the database lacks {_count(missing, 'data key')} that records need: {_some(missing)}")
        if unreadable:
            named = _some([f"{row_id} ({why})" for row_id, why in unreadable.items()])
            found.append(f"{_count(unreadable, 'row')} of the keyring cannot be read: {named}")
        return found

    async def watch(self, interval: float) -> None:
        """Looks after each `interval` seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.again()


def _tell(before: Seen | None, now: Seen) -> None:
    """What was not so at the last look is a line of the log."""
    for row_id, why in now.unreadable.items():
        if before is None or row_id not in before.unreadable:
            log.error("a row of the keyring cannot be read", id=row_id, why=why)
    for data_key_id in now.missing:
        if before is None or data_key_id not in before.missing:
            log.error("the database lacks a data key that records need", data_key=data_key_id)


def _count(these: Sized, what: str) -> str:
    return f"1 {what}" if len(these) == 1 else f"{len(these)} {what}s"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
