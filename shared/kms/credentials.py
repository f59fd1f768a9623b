"""Google's credentials, looked for once for all keys of a process.

`google.auth.default()` reads files and asks the metadata server, and blocks for seconds where there is none: so it has
a thread of its own, which nothing else waits for, and which ends with the process.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import google.auth
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

_SCOPE: Final = "https://www.googleapis.com/auth/cloudkms"


def _default() -> Credentials:
    credentials: Credentials = google.auth.default(scopes=[_SCOPE])[0]
    return credentials


class Lookup:
    """A lookup that many may wait for. One that failed is told to whoever asks next, and then begun anew."""

    def __init__(self, find: Callable[[], Credentials] = _default) -> None:
        self._find = find
        self._looking: Future[Credentials] | None = None

    async def credentials(self) -> Credentials:
        """The credentials; a wait that is cancelled leaves the lookup running, so that a later one finds its end.

        Raises:
            google.auth.exceptions.GoogleAuthError: there are none.
        """
        looking = self._looking
        if looking is None:
            looking = self._looking = Future()
            looking.set_running_or_notify_cancel()  # running, so that no one who waits can cancel it for the others
            threading.Thread(target=self._look, args=(looking,), name="google credentials", daemon=True).start()
        try:
            return await asyncio.wrap_future(looking)
        finally:
            if looking.done() and looking.exception() is not None and self._looking is looking:
                self._looking = None

    def _look(self, looking: "Future[Any]") -> None:
        try:
            looking.set_result(self._find())
        except Exception as error:  # noqa: BLE001 - whatever ends the lookup is handed to those who wait
            known = error if isinstance(error, GoogleAuthError) else None
            looking.set_exception(known or GoogleAuthError(f"{type(error).__name__} while looking for them"))  # type: ignore[no-untyped-call]


shared_lookup: Final = Lookup()
"""The one of this process."""
