"""The configured runbook, in memory: a Markdown file, a folder with a file for each alert, or one URL.

It is read in the background, and again when it changes, so that a message waits for it only at the very start. Nothing
that an alert names is read: its name is looked up among the sections that are in memory.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from services.relay.delivery.enrichment.excerpt import build_excerpts, find_excerpt
from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.model import RunbookExcerpt
from services.relay.send_error import SendError
from shared.net.egress import EgressSettings
from shared.process.concurrency import start_in_thread

MAX_BYTES: Final = 512 * 1024
"""Bytes of a document, or of all files that are read."""
_MAX_FILES: Final = 200
_FILE_INTERVAL: Final = 10.0
"""Seconds between looks at the files."""
_URL_INTERVAL: Final = 300.0
_RETRY_INTERVAL: Final = 30.0
"""Seconds after a failure."""
_FETCH_SECONDS: Final = 10.0
_FIRST_WAIT: Final = 0.5
"""Seconds after the start in which a message waits for the first reading."""

Excerpts = Mapping[str, RunbookExcerpt]
_Stamp = tuple[int, int, int] | None

log = structlog.get_logger(__name__)


class RunbookError(Exception):
    """The runbook cannot be read; the text says why, and what was expected."""


class _FilesRead(NamedTuple):
    """What was made of files, and what they were."""

    excerpts: Excerpts
    stamps: Mapping[Path, _Stamp]


class Runbook:
    """The excerpts of a runbook, while `run` runs.

    Args:
        location: a file, a folder or a URL.
        egress: how a URL is reached.
    """

    def __init__(self, location: Path | str, egress: EgressSettings | None = None) -> None:
        self._location = location
        self._session = HttpSession("the runbook's server", egress=egress)
        self._excerpts: Excerpts = {}
        self._stamps: Mapping[Path, _Stamp] = {}
        self._etag = ""
        self._is_ready = asyncio.Event()

    async def find(self, alertname: str) -> RunbookExcerpt | None:
        """The excerpt for an alert; None if there is none, or it is not read yet."""
        await self._is_ready.wait()
        return find_excerpt(self._excerpts, alertname) if alertname else None

    async def run(self) -> None:
        """Reads it again and again, until it is cancelled."""
        is_reported = False
        interval = _URL_INTERVAL if isinstance(self._location, str) else _FILE_INTERVAL
        ready = asyncio.get_running_loop().call_later(_FIRST_WAIT, self._is_ready.set)
        try:
            while True:
                wait = interval
                try:
                    await self.read()
                    is_reported = False
                except RunbookError as error:
                    wait = _RETRY_INTERVAL
                    if not is_reported:
                        log.warning("runbook cannot be read; messages keep what was read before", error=str(error))
                    is_reported = True
                except Exception:
                    log.exception("unexpected error in the runbook; messages keep what was read before")
                self._is_ready.set()
                await asyncio.sleep(wait)
        finally:
            ready.cancel()
            await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def read(self) -> int:
        """Reads what has changed; how many names lead to a section. Raises RunbookError."""
        if isinstance(self._location, str):
            text = await self._fetch(self._location)
            if text is not None:
                work = partial(build_excerpts, text)
                self._excerpts = await asyncio.wrap_future(start_in_thread("runbook", work))
        else:
            read = partial(_read_changed_files, self._location, self._stamps)  # in a thread of its own: it may hang
            changed = await asyncio.wrap_future(start_in_thread("runbook", read))
            if changed is not None:
                self._excerpts, self._stamps = changed
        return len(self._excerpts)

    async def _fetch(self, url: str) -> str | None:
        """The document; None if it has not changed. Raises RunbookError."""
        body = bytearray()
        try:
            with translate_connection_errors("the runbook's server"):
                async with (
                    asyncio.timeout(_FETCH_SECONDS),
                    self._session.open().get(
                        url, headers={"If-None-Match": self._etag} if self._etag else {}
                    ) as answer,
                ):
                    if answer.status == 304:
                        return None
                    if answer.status != 200:
                        raise RunbookError(f"its server answered HTTP {answer.status}; expected 200 without a login")
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) > MAX_BYTES:
                            raise RunbookError(f"it is over {MAX_BYTES} bytes")
                    self._etag = answer.headers.get("ETag", "")
        except TimeoutError:
            raise RunbookError(f"no answer within {_FETCH_SECONDS:g} s") from None
        except SendError as error:  # a redirect is one, too
            raise RunbookError(str(error)) from None
        return body.decode(errors="replace")


def _read_changed_files(location: Path, stamps: Mapping[Path, _Stamp]) -> _FilesRead | None:
    """What the files hold; None if they are as they were. Raises RunbookError."""
    if stamps and all(_read_stamp(file) == stamp for file, stamp in stamps.items()):
        return None
    reader = _FileReader(location if location.is_dir() else location.parent)
    try:
        if not location.is_dir():
            return _FilesRead(build_excerpts(reader.read(location), reader.read_linked), reader.stamps)
        reader.stamps[location] = _read_stamp(location)  # it changes with the names in it
        excerpts: dict[str, RunbookExcerpt] = {}
        for file in sorted(location.glob("*.md"))[:_MAX_FILES]:
            found = find_excerpt(build_excerpts(reader.read(file)), file.stem)
            excerpts |= {file.stem.lower(): found} if found else {}
        return _FilesRead(excerpts, reader.stamps)
    except OSError as error:
        raise RunbookError(f"{error.filename}: {error.strerror}; expected a file that this user may read") from None


class _FileReader:
    """Reads files within a folder, all together no more than `MAX_BYTES`, and remembers which."""

    def __init__(self, folder: Path) -> None:
        self.stamps: dict[Path, _Stamp] = {}
        self._folder = folder.resolve()
        self._left = MAX_BYTES

    def read(self, file: Path) -> str:
        """Raises OSError, RunbookError."""
        self.stamps[file] = _read_stamp(file)
        with file.open("rb") as opened:
            body = opened.read(self._left + 1)
        self._left -= len(body)
        if self._left < 0:
            raise RunbookError(f"{file}: the runbook is over {MAX_BYTES} bytes")
        return body.decode(errors="replace")

    def read_linked(self, path: str) -> str | None:
        """The text of another file below the folder; None if there is none."""
        file = (self._folder / path).resolve()
        if len(self.stamps) > _MAX_FILES or not file.is_relative_to(self._folder) or not file.is_file():
            return None
        return self.read(file)


def _read_stamp(file: Path) -> _Stamp:
    """A value that differs after a change; None if there is no such file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
