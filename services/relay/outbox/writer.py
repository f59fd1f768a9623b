"""The thread that writes: takes what waits, does it in few transactions, and says how each piece of work ended.

On SQLite everything shares one transaction; on PostgreSQL each kind of work has its own, so that the order in which it
locks rows is the same in every replica.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, exc

from services.relay.outbox import dialect
from services.relay.outbox.migrate import UnknownDatabaseError, check, upgrade
from services.relay.outbox.together import Outcome, Transaction, by_kind, do_all
from services.relay.outbox.waiting import Queue, StoreUnavailableError, Work
from shared.sql.engine import may_succeed_at_once, transaction
from shared.sql.location import Database
from shared.sql.sqlite_file import FileLostError

_TOGETHER: Final = 256
"""How many pieces of work share one transaction at most."""
_FEW: Final = 4
"""Pieces of work in one transaction after which the next one waits a moment, so that it finds more of them."""
_GATHER_SECONDS: Final = 0.004
"""That moment. A busy outbox does more with it, since a flush to the disk costs the same for one and for many."""
_TRIES: Final = 3
_CHECKED: Final = "the tables are ours"
"""The key of a connection's own mapping under which that stands."""
_SLOW_SECONDS: Final = 3.0
"""How long a transaction may take before that is a problem."""

log = structlog.get_logger(__name__)


class Writer:
    """Works until its queue is closed and empty.

    Args:
        database: where it is.
        engine: its one connection.
        reading: those that read, which are opened anew, too, once the database failed.
        queue: what is to be done.
        clock: unix seconds, by this machine.
        unmerged: the channels on which every event is told by itself.
        monotonic: seconds, to see how long a transaction takes.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        reading: Engine,
        queue: Queue,
        clock: Callable[[], float],
        unmerged: frozenset[str],
        monotonic: Callable[[], float],
    ) -> None:
        self.prepared = False
        """Whether the tables are there."""
        self._database = database
        self._engine = engine
        self._reading = reading
        self._queue = queue
        self._clock = clock
        self.unmerged = unmerged
        self._monotonic = monotonic
        self._problem: str | None = None
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    @property
    def problem(self) -> str | None:
        """Why the last transaction failed, or that one hangs; None where all is well."""
        began = self._began
        if self._problem is None and began is not None and self._monotonic() - began > _SLOW_SECONDS:
            return f"a transaction has been under way for more than {_SLOW_SECONDS:g} s"
        return self._problem

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Whether the work is over, at the latest after so long."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def prepare(self) -> None:
        """Makes the tables, or brings them up to date, once. Raises what `upgrade` raises, and OSError."""
        if self.prepared:
            return
        try:
            dialect.make_file(self._database)
        except FileLostError as error:
            raise UnknownDatabaseError(str(error)) from None
        with transaction(self._engine) as connection:
            made = upgrade(connection)
        if made:
            log.warning("made new tables in an empty database", database=str(self._database))
        self.prepared = True

    def failed(self, works: Sequence[Work], problem: str) -> None:
        """Nothing is committed for now; whoever waits for these pieces of work is told."""
        if self._problem != problem:
            log.error("the outbox cannot commit", problem=problem)
            self._problem = problem
        for engine in (self._engine, self._reading):
            engine.dispose()  # the next transaction opens it anew: what was mounted, replaced or restarted is seen
        self._queue.tell(works, [(None, StoreUnavailableError(problem)) for _ in works])

    def _run(self) -> None:
        before = 0
        while self._queue.wait():
            if before > _FEW:
                time.sleep(_GATHER_SECONDS)
            before = self._next()
        self._engine.dispose()

    def _next(self) -> int:
        """Does what waits; how many pieces of work it was."""
        works = self._queue.take(_TOGETHER)
        if dialect.is_sqlite(self._database):
            self._commit(works)
        else:
            for places in by_kind([work.piece for work in works]).values():
                self._commit([works[place] for place in places])
        self._queue.drop(works)
        return len(works)

    def _commit(self, works: Sequence[Work], tries: int = _TRIES, *, hurry: bool = False) -> None:
        works = [work for work in works if not work.done.done()]
        if not works:
            return
        try:
            outcomes = self._transact(works, hurry=hurry)
        except exc.DBAPIError as error:
            # SQLAlchemy's frames hold their own error, and so all that was to be written, until cycles are looked for.
            traceback.clear_frames(error.__traceback__)
            if dialect.is_held(error) and self.prepared:
                self._held(works, StoreUnavailableError(dialect.words(error)))
            elif may_succeed_at_once(error) and tries > 1:
                self._commit(works, tries - 1, hurry=hurry)
            elif dialect.is_ours(error):
                self._one_by_one(works, error)
            else:
                self.failed(works, dialect.words(error))
        except UnknownDatabaseError as error:
            self.failed(works, str(error))
        except Exception as error:  # noqa: BLE001  # this thread outlives whatever happens to the database
            self.failed(works, repr(error))
        else:
            if self._problem is not None:
                log.info("the outbox works again")
                self._problem = None
            self._queue.tell(works, outcomes)

    def _transact(self, works: Sequence[Work], *, hurry: bool) -> list[Outcome]:
        self._began = self._monotonic()
        try:
            self.prepare()
            with transaction(self._engine) as connection:
                _check_once(connection)
                if hurry:
                    dialect.hurry(connection)
                now = dialect.now(connection, self._clock)
                return do_all(Transaction(connection, now, self.unmerged), [work.piece for work in works])
        finally:
            self._began = None

    def _held(self, works: Sequence[Work], error: Exception) -> None:
        """Another process holds what some of them need: the others are done, and those get another turn after them."""
        if len(works) > 1:
            for work in works:
                self._commit([work], hurry=True)
        elif not self._queue.put_back(works[0]):
            self._queue.tell(works, [(None, error)])

    def _one_by_one(self, works: Sequence[Work], error: Exception) -> None:
        """Each is done alone, so that one that is wrong fails alone."""
        if len(works) == 1:
            self._queue.tell(works, [(None, error)])
        for work in works if len(works) > 1 else ():
            self._commit([work])


def _check_once(connection: Connection) -> None:
    """A database that was connected to anew may be another one, in the place of ours. Raises UnknownDatabaseError."""
    if not connection.info.get(_CHECKED):
        check(connection)
        connection.info[_CHECKED] = True
