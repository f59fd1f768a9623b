"""A connection to PostgreSQL with a timeout for every answer.

The server's own timeouts limit its work, and the kernel's a lost peer. Neither helps if the server, or a proxy before
it, accepts bytes and never answers: a stopped process, a paused machine.
"""

import time
from collections.abc import Generator, Iterable
from typing import Any, cast

from psycopg import Connection as PsycopgConnection
from psycopg import Cursor, OperationalError
from psycopg.abc import Params, Query, QueryNoTemplate
from psycopg.waiting import Ready

from shared.sql.engine import AnswerTimeout


class TimeoutConnection(PsycopgConnection[Any]):
    """Closes itself, with an OperationalError, if an answer takes longer than the timeout."""

    answer_timeout = AnswerTimeout()

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **also: Any) -> Any:
        """The wait of psycopg itself, which all communication goes through."""
        return super().wait(self._enforce_timeout(gen), *arguments, **also)

    def _enforce_timeout(self, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        started_at = time.monotonic()
        ready = None
        while True:
            try:
                wanted = generator.send(ready)
            except StopIteration as end:
                return end.value
            ready = yield wanted
            seconds = self.answer_timeout.seconds
            if ready == Ready.NONE and seconds is not None and time.monotonic() - started_at > seconds:
                self.close()
                raise OperationalError(f"PostgreSQL gave no answer within {seconds:g} s")


class RowByRowCursor(Cursor[Any]):
    """Executes many rows one by one, without a pipeline: between two of them the session is idle.

    So `idle_in_transaction_session_timeout` ends a transaction whose client has stopped.
    """

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Executes the query for each row. `returning` is unused."""
        if returning:
            raise NotImplementedError("returning=True")
        for params in params_seq:
            self.execute(cast("QueryNoTemplate", query), params)  # a template has its values already
