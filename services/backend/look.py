"""Looks at the keyring in its database at each check, so that a scrape shows what any runner did, and asks nothing."""

import asyncio

import structlog

from shared.keyring.database import Database, DatabaseError
from shared.keyring.seen import Seen, seen

log = structlog.get_logger(__name__)


class Look:
    """The last look."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seen: Seen | None = None
        """None where the database could not be read: nothing is shown rather than what was."""

    async def again(self) -> None:
        """Looks now."""
        before, self.seen = self.seen, None
        try:
            self.seen = await self._database.read(seen)
        except DatabaseError as error:
            if before is not None:
                log.warning("the keyring's database cannot be read; its metrics are absent", error=str(error))
        except Exception:  # a defect, or a row that nobody foresaw, must end neither the looks nor the start
            log.exception("the keyring was looked at in vain in an unforeseen way; its metrics are absent")
        else:
            for row_id, why in self.seen.unreadable.items():
                if before is None or row_id not in before.unreadable:
                    log.error("a row of the keyring cannot be read", id=row_id, why=why)

    async def watch(self, interval: float) -> None:
        """Looks after each `interval` seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.again()
