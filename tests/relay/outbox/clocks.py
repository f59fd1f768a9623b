"""Clocks of databases that a test sets."""

from sqlalchemy import Engine, text

from services.relay.outbox import tables

START = 1_800_000_000.0


class FileClock:
    now = START

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class ServerClock(FileClock):
    """Puts a clock that can be set before PostgreSQL's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._run("CREATE TABLE the_time (now DOUBLE PRECISION)", f"INSERT INTO the_time VALUES ({START})")  # noqa: S608  # numbers of ours
        self._run(
            "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql "
            "AS 'SELECT to_timestamp(now) FROM public.the_time'",
            f"ALTER DATABASE {engine.url.database} SET search_path = public, pg_catalog",
        )

    def move(self, seconds: float) -> None:
        super().move(seconds)
        self._run(f"UPDATE the_time SET now = {self.now}")  # noqa: S608  # as above

    def reset(self) -> None:
        self.move(START - self.now)
        self._run(f"TRUNCATE {', '.join(tables.metadata.tables)} RESTART IDENTITY")

    def _run(self, *statements: str) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
