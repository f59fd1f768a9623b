"""Google's credentials, looked for once for all keys of a process.

`google.auth.default()` reads files and asks the metadata server, and blocks for seconds where there is none: so it has
a thread of its own, which nothing else waits for, and which ends with the process. A file that the environment names is
read again once it is another: a service account's key is rotated, too.
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

from shared.secret_file import SecretFile, Stamp

_SCOPE: Final = "https://www.googleapis.com/auth/cloudkms"


def _default() -> Credentials:
    credentials: Credentials = google.auth.default(scopes=[_SCOPE])[0]
    return credentials


class Lookup:
    """A lookup that many may wait for. One that failed is told to whoever asks next, and then begun anew."""

    def __init__(self, find: Callable[[], Credentials] = _default) -> None:
        self._find = find
        self._looking: Future[Credentials] | None = None
        self._stamp: Stamp | None = None

    async def credentials(self) -> Credentials:
        """The credentials; a wait that is cancelled leaves the lookup running, so that a later one finds its end.

        Raises:
            google.auth.exceptions.GoogleAuthError: there are none.
        """
        looking = self._looking
        if looking is None or (looking.done() and self._file_is_another):
            self._stamp = _stamp()
            looking = self._looking = Future()
            looking.set_running_or_notify_cancel()  # running, so that no one who waits can cancel it for the others
            threading.Thread(target=self._look, args=(looking,), name="google credentials", daemon=True).start()
        try:
            return await asyncio.wrap_future(looking)
        finally:
            if looking.done() and looking.exception() is not None and self._looking is looking:
                self._looking = None

    def has_other_than(self, credentials: Credentials | None) -> bool:
        """Whether a lookup would give, or gave by now, something else than these."""
        looking = self._looking
        if looking is None or not looking.done() or looking.exception() is not None:
            return False
        return self._file_is_another or looking.result() is not credentials

    @property
    def _file_is_another(self) -> bool:
        return _stamp() not in {None, self._stamp}

    def _look(self, looking: "Future[Any]") -> None:
        try:
            looking.set_result(self._find())
        except Exception as error:  # noqa: BLE001 - whatever ends the lookup is handed to those who wait
            known = error if isinstance(error, GoogleAuthError) else None
            looking.set_exception(known or GoogleAuthError(f"{type(error).__name__} while looking for them"))  # type: ignore[no-untyped-call]


def _stamp() -> Stamp | None:
    """Of the file with the credentials; None where there is none, or none at the moment."""
    named = os.environ.get(CREDENTIALS)
    return SecretFile(Path(named)).stamp() if named else None


shared_lookup: Final = Lookup()
"""The one of this process."""
