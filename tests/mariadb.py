"""A real MariaDB for the tests, Debian's own: a folder comes in, a server goes out. `ops/tools/require` installs it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy import URL

from ops.demo.processes import build_parent_death_hook
from tests import processes

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_SETTINGS = (
    "--no-defaults",
    "--skip-networking",
    "--skip-log-bin",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",  # the folder may be in memory
    "--innodb-flush-log-at-trx-commit=2",  # guards against a power cut, which no test makes
    "--max-connections=100",
    "--performance-schema=OFF",
)


class MariaDb:
    """One server, reached through a socket in its own folder only.

    Args:
        folder: an empty folder of its own; a short path, for a socket's is limited to 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "socket"
        self._log = folder / "log"
        # Ctrl-C is for the tests, which then stop it; where they are killed, it ends by itself.
        self._as_user: dict[str, Any] = {"start_new_session": True, "preexec_fn": build_parent_death_hook()}
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:  # MariaDB refuses to run as root
            self._user = "nobody"
            nobody = pwd.getpwnam(self._user)
            self._as_user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            shutil.chown(folder, nobody.pw_uid, nobody.pw_gid)
        data = folder / "data"
        install = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
        ]
        with self._log.open("ab") as log:
            subprocess.run(
                [*install, "--auth-root-authentication-method=normal"],
                check=True,
                stdout=log,
                stderr=log,
                timeout=60,
                **self._as_user,
            )
            command = [_find_server(), *_SETTINGS, f"--datadir={data}", f"--socket={self.socket}"]
            self.process = subprocess.Popen(
                [*command, f"--pid-file={folder}/pid", f"--tmpdir={folder}"], stdout=log, stderr=log, **self._as_user
            )
        self._wait()

    def database(self, name: str) -> URL:
        """Makes an empty database."""
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return URL.create("mariadb", "root", database=name, query={"unix_socket": str(self.socket)})

    def drop(self, database: URL) -> None:
        """Removes a database, whoever is still connected to it."""
        self._execute(f"DROP DATABASE {database.database}")

    def stop(self) -> None:
        """Ends the server."""
        processes.end(self.process, seconds=STOP_SECONDS)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:  # a driver that cannot connect leaves its own open
                    probe.connect(str(self.socket))
            except OSError as error:
                if self.process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                processes.end(self.process, signal.SIGKILL)
                raise RuntimeError(f"MariaDB does not start: {error}\n{self._log.read_text()}") from None
            return

    def _execute(self, statement: str) -> None:
        with (
            pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)


def _find_server() -> str:
    return shutil.which("mariadbd") or "/usr/sbin/mariadbd"
