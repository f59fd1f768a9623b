"""One thread that writes to the database: functions on a transaction go in, their results come out after the commit.

All that waits is done together (group commit): many webhooks and receipts share one fsync, and each is answered only
after it. On SQLite everything shares one transaction; on PostgreSQL each kind of work has its own, so that the order in
which it locks rows is the same in every replica. Reads have connections of their own, and never wait for the writer.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import structlog
from sqlalchemy import Connection, exc

from services.relay.outbox import dialect
from services.relay.outbox.database import Database
from services.relay.outbox.migrate import ForeignDatabaseError, NewerSchemaError, upgrade
from services.relay.outbox.together import Piece, Transaction, by_kind, do_all
from services.relay.outbox.waiting import StoreUnavailableError, Work, tell, too_late

_WAITING: Final = 8192
"""How many pieces of work may wait; one more is refused, so that memory is bounded."""
_TOGETHER: Final = 256
"""How many of them share one transaction at most."""
_FEW: Final = 4
"""Pieces of work in one transaction after which the next one waits a moment, so that it finds more of them."""
_GATHER_SECONDS: Final = 0.004
"""That moment. A busy outbox does more with it, since a flush to the disk costs the same for one and for many."""
_TRIES: Final = 3
_ANSWER_SECONDS: Final = 8.0
"""How long a caller waits, its turn included: less than the 10 s that Alertmanager gives a webhook at least."""

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item of work
log = structlog.get_logger(__name__)


class StoreUnusableError(Exception):
    """The database cannot be opened at all; the message is one sentence with the next step."""


class Store:
    """The open database. `problem` says why the last transaction failed; None where it did not."""

    def __init__(self, database: Database, clock: Callable[[], float], unmerged: frozenset[str]) -> None:
        self.clock = clock
        self.problem: str | None = None
        self._unmerged = unmerged
        self._database = database
        self._writing, self._reading = dialect.engines(database)
        self._prepared = False
        self._work: deque[Work] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    async def run(self, do: Callable[[Transaction], T]) -> T:
        """What `do` returns, once it is on the disk; an exception of `do` undoes it alone.

        Raises:
            StoreUnavailableError: nothing was committed; after "no answer" alone it may still be.
        """
        return await self.batch(lambda transaction, _: [do(transaction)], None)

    async def batch(self, do: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I) -> T:
        """What `do` returns for `item`, once it is on the disk; `do` gets all items that wait for it in one call.

        Raises:
            StoreUnavailableError: nothing was committed; after "no answer" alone it may still be.
        """
        with self._news:
            if self._closed:
                raise StoreUnavailableError("the outbox is closed")
            if len(self._work) >= _WAITING:
                raise StoreUnavailableError(f"{_WAITING} pieces of work wait for the outbox already")
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            self._work.append(Work(Piece(do, item), done))
            self._news.notify()
        late = loop.call_later(_ANSWER_SECONDS, too_late, done, _ANSWER_SECONDS)
        try:
            return await done
        finally:
            late.cancel()

    async def read(self, do: Callable[[Connection], T]) -> T:
        """What `do` reads, on a connection of its own. Raises StoreUnavailableError."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.to_thread(self.read_blocking, do)
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {_ANSWER_SECONDS:g} s") from None

    def read_blocking(self, do: Callable[[Connection], T]) -> T:
        """The same for a thread other than the event loop's. Raises StoreUnavailableError."""
        if self._closed or not self._prepared:
            raise StoreUnavailableError(self.problem or "the outbox is closed")
        try:
            with self._reading.begin() as connection:
                return do(connection)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            self._reading.dispose()
            raise StoreUnavailableError(_words(error)) from None

    def start(self) -> None:
        """Opens the database, brings its tables up to date, and starts the thread. Blocks.

        One that is locked, full or not there at the moment is tried again with each transaction.

        Raises:
            StoreUnusableError: waiting would not help.
        """
        try:
            if dialect.is_sqlite(self._database):
                # It will hold what alerts say; SQLite gives its other files the same mode.
                Path(str(self._database.database)).touch(mode=0o600)
            self._prepare()
        except OSError as error:
            raise StoreUnusableError(f"{error.strerror}") from None
        except (ForeignDatabaseError, NewerSchemaError) as error:
            raise StoreUnusableError(str(error)) from None
        except exc.DBAPIError as error:
            if not dialect.is_passing(error):
                raise StoreUnusableError(_words(error)) from None
            self._failed([], _words(error))
        self._thread.start()

    def close(self) -> None:
        """Does what waits, then closes the database. Blocks for as long as that takes."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._writing.dispose()
        self._reading.dispose()

    def _prepare(self) -> None:
        if not self._prepared:
            with self._writing.begin() as connection:
                upgrade(connection)
            self._prepared = True

    def _run(self) -> None:
        before = 0
        while True:
            with self._news:
                self._news.wait_for(lambda: self._work or self._closed)
            if before > _FEW:
                time.sleep(_GATHER_SECONDS)
            with self._news:
                batch = [self._work.popleft() for _ in range(min(len(self._work), _TOGETHER))]
            if not batch:
                return
            before = len(batch)
            works = [work for work in batch if not work.done.cancelled()]
            if dialect.is_sqlite(self._database):
                self._commit(works)
            else:
                for places in by_kind([work.piece for work in works]).values():
                    self._commit([works[place] for place in places])

    def _commit(self, works: list[Work], tries: int = _TRIES) -> None:
        if not works:
            return
        try:
            self._prepare()
            with self._writing.begin() as connection:
                now = dialect.now(connection, self.clock)
                transaction = Transaction(connection, now, self._unmerged)
                outcomes = do_all(transaction, [work.piece for work in works])
        except exc.DBAPIError as error:
            if dialect.may_succeed_at_once(error) and tries > 1:
                self._commit(works, tries - 1)
            elif dialect.is_ours(error):
                self._not_together(works, error)
            else:
                self._failed(works, _words(error))
        except Exception as error:  # noqa: BLE001  # this thread outlives whatever happens to the database
            self._failed(works, repr(error))
        else:
            if self.problem is not None:
                log.info("the outbox works again")
                self.problem = None
            tell(works, outcomes)

    def _not_together(self, works: list[Work], error: Exception) -> None:
        """Of several pieces of work one was wrong: each is done alone, so that it fails alone."""
        if len(works) == 1:
            tell(works, [(None, error)])
        for work in works if len(works) > 1 else ():
            self._commit([work])

    def _failed(self, works: list[Work], problem: str) -> None:
        if self.problem != problem:
            log.error("the outbox cannot commit", problem=problem)
            self.problem = problem
        self._writing.dispose()  # the next transaction opens it anew: what was mounted, replaced or restarted is seen
        tell(works, [(None, StoreUnavailableError(problem)) for _ in works])


@asynccontextmanager
async def opened(
    database: Database, clock: Callable[[], float], unmerged: frozenset[str] = frozenset()
) -> AsyncIterator[Store]:
    """The store of a database; its tables are made where there are none.

    Args:
        database: a file, whose folder must exist, or a database of PostgreSQL.
        clock: unix seconds.
        unmerged: the channels on which every event is told by itself.

    Raises:
        StoreUnusableError: the folder is missing, it is something else, or a newer keypulse wrote it.
    """
    store = Store(database, clock, unmerged)
    folder = Path(str(database.database)).parent
    if dialect.is_sqlite(database) and not await asyncio.to_thread(folder.is_dir):
        raise StoreUnusableError(f"the folder {folder} does not exist; create it, or set another `database`")
    try:
        await asyncio.to_thread(store.start)
    except StoreUnusableError as error:
        name = database.database if dialect.is_sqlite(database) else database
        raise StoreUnusableError(f"cannot use the database {name}: {error}") from None
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


def _words(error: Exception) -> str:
    """What the database says, on one line."""
    return " ".join(str(error.orig if isinstance(error, exc.DBAPIError) else error).split())
