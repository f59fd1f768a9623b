"""Google's credentials, looked up once for all keys of a process.

`google.auth.default()` reads files and queries the metadata server, and blocks for seconds if there is none: so it
has a thread of its own, which nothing else waits for, and which ends with the process. A file that the environment
names is read again once it is another: a service account's key is rotated, too.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import google.auth
from google.auth.credentials import Credentials
from google.auth.environment_vars import CREDENTIALS
from google.auth.exceptions import GoogleAuthError

from shared.config.secret_file import FileStamp, read_stamp

_SCOPE: Final = "https://www.googleapis.com/auth/cloudkms"


def _find_default_credentials() -> Credentials:
    credentials: Credentials = google.auth.default(scopes=[_SCOPE])[0]
    return credentials


class CredentialsLookup:
    """A lookup that many callers may wait for. After a failure the next caller gets the error, and a new one starts."""

    def __init__(self, find: Callable[[], Credentials] = _find_default_credentials) -> None:
        self._find = find
        self._pending: Future[Credentials] | None = None
        self._stamp: FileStamp | None = None

    async def get_credentials(self) -> Credentials:
        """A wait that is cancelled leaves the lookup running, for a later one. Raises GoogleAuthError."""
        lookup = self._pending
        if lookup is None or (lookup.done() and self._is_file_changed):
            self._stamp = _read_file_stamp()
            lookup = self._pending = Future()
            lookup.set_running_or_notify_cancel()  # running, so that no one who waits can cancel it for the others
            threading.Thread(target=self._run, args=(lookup,), name="google credentials", daemon=True).start()
        try:
            return await asyncio.wrap_future(lookup)
        finally:
            if lookup.done() and lookup.exception() is not None and self._pending is lookup:
                self._pending = None

    def has_changed(self, credentials: Credentials | None) -> bool:
        """Whether a lookup would give, or gave by now, something else than these."""
        lookup = self._pending
        if lookup is None or not lookup.done() or lookup.exception() is not None:
            return False
        return self._is_file_changed or lookup.result() is not credentials

    @property
    def _is_file_changed(self) -> bool:
        return _read_file_stamp() not in {None, self._stamp}

    def _run(self, lookup: "Future[Any]") -> None:
        try:
            lookup.set_result(self._find())
        except Exception as error:  # noqa: BLE001 - whatever ends the lookup is handed to those who wait
            credentials_error = error if isinstance(error, GoogleAuthError) else None
            lookup.set_exception(credentials_error or GoogleAuthError(f"{type(error).__name__} while looking for them"))  # type: ignore[no-untyped-call]


def _read_file_stamp() -> FileStamp | None:
    named = os.environ.get(CREDENTIALS)
    return read_stamp(Path(named)) if named else None


process_lookup: Final = CredentialsLookup()
