"""A connection to PostgreSQL whose every wait for an answer ends.

The server's own time-outs bound what it does, and the kernel's a peer that is gone. Neither helps where the server, or
what stands before it, takes bytes and answers nothing: a process that is stopped, a machine that is paused.
"""

import time
from collections.abc import Generator, Iterable
from typing import Any, cast

from psycopg import Connection, Cursor, OperationalError
from psycopg.abc import Params, Query, QueryNoTemplate
from psycopg.waiting import Ready

from shared.sql.answer_timeout import AnswerTimeout


class TimeoutConnection(Connection[Any]):
    """Closes itself where an answer takes longer than its patience, with an OperationalError."""

    answer_timeout = AnswerTimeout()

    def wait(self, gen: Generator[Any, Any, Any], *how: Any, **also: Any) -> Any:
        """The wait of psycopg itself, which every exchange goes through."""
        return super().wait(self._enforce_timeout(gen), *how, **also)

    def _enforce_timeout(self, exchange: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        began = time.monotonic()
        ready = None
        while True:
            try:
                wanted = exchange.send(ready)
            except StopIteration as end:
                return end.value
            ready = yield wanted
            seconds = self.answer_timeout.seconds
            if ready == Ready.NONE and seconds is not None and time.monotonic() - began > seconds:
                self.close()
                raise OperationalError(f"PostgreSQL gave no answer within {seconds:g} s")


class RowByRowCursor(Cursor[Any]):
    """Executes many rows one after the other, without a pipeline: between two of them the session is idle.

    So `idle_in_transaction_session_timeout` ends a transaction whose client has stopped.
    """

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Executes the query for each row. `returning` is of psycopg's own, and nothing here uses it."""
        if returning:
            raise NotImplementedError("returning=True")
        for params in params_seq:
            self.execute(cast("QueryNoTemplate", query), params)  # a template has its values already
