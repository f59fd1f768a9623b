"""Sends in a process of its own, beside the one that takes in and commits: Python runs on one core in each.

It holds nothing that is not in the outbox as well. When it ends, whatever it was sending counts as perhaps arrived and
is tried again, and another one is started. It ends when the relay does, and one that says nothing is killed before the
lease of what it sends ends: nobody else may send that before this one no longer can.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Final

import structlog

from services.relay.channels.channel import LeaseLostError, Reason, Scope, SendError
from services.relay.channels.defect import defect
from services.relay.sending.outgoing import Attempted, Keep, NotKeptError, Outgoing, Send, SendingSettings
from services.relay.sending.pipe import Pipe
from services.relay.sending.words import OTHER_VERSION, Begin, Begun, Do, Done, KeepThis, Kept, Stop
from shared import VERSION, logs

_PAUSE: Final = 1.0
"""Seconds before another one is started."""
_UNREAD: Final = 0.2
"""Seconds for reading what it said meanwhile."""
_TO_KILL: Final = 2 * _UNREAD
"""Seconds between the end of a send and that of its lease: with less, a process that hangs could be killed too late."""
_CLOSE_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def apart(settings: SendingSettings) -> AsyncIterator[Send]:
    """Sends while the body runs; after it, the process is gone.

    For the main thread: Linux ends the process with the thread that started it.
    """
    sending = _Apart(settings)
    running = asyncio.create_task(sending.run(), name="sending process")
    try:
        yield sending
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Apart:
    def __init__(self, settings: SendingSettings) -> None:
        self._settings = settings
        self._numbers = count()
        self._asked: dict[int, tuple[asyncio.Future[Attempted], Keep]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._process: Process | None = None
        self._starting: Pipe | None = None
        self._pipe: Pipe | None = None
        """Where one can send."""
        self._up = asyncio.Event()

    async def __call__(self, outgoing: Outgoing, keep: Keep) -> Attempted:
        """See the port."""
        if outgoing.lease_ends - outgoing.ends < _TO_KILL:
            return Attempted(lease_lost=True)
        while (pipe := self._pipe) is None:
            try:
                async with asyncio.timeout_at(outgoing.ends):
                    await self._up.wait()
            except TimeoutError:
                return _lost("no sending process could be started", maybe_arrived=False)
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        answer: asyncio.Future[Attempted] = loop.create_future()
        self._asked[number] = answer, keep
        pipe.say(Do(number, outgoing))
        overdue = loop.call_at(_overdue(outgoing), self._late, number)
        try:
            return await answer
        except asyncio.CancelledError:
            pipe.say(Stop(number))
            raise
        finally:
            overdue.cancel()
            del self._asked[number]

    async def run(self) -> None:
        """Keeps a process until it is cancelled."""
        try:
            while True:
                try:
                    await self._one()
                except OSError as error:
                    log.error("the sending process cannot be started", problem=error.strerror)  # noqa: TRY400
                except Exception:
                    log.exception("a defect in looking after the sending process; it goes on")
                await asyncio.sleep(_PAUSE)
        finally:
            for task in self._keeping:
                task.cancel()
            await asyncio.gather(*self._keeping, return_exceptions=True)

    async def _one(self) -> None:
        """Starts one, and returns when it has ended."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            arguments = (str(theirs.fileno()), VERSION, str(os.getpid()))
            command = (sys.executable, "-P", "-m", "services.relay.sending", *arguments)
            # It imports what this process does, wherever it was started, and nothing that happens to lie there.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            # In a session of its own, so that the terminal's Ctrl-C reaches only the relay.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )
            theirs.close()
            try:
                await self._talk(process, ours)
            finally:
                try:
                    await _end(process)
                finally:
                    self._lose()  # not before: somebody else may send it then
        if process.returncode == OTHER_VERSION:
            log.error("another version is installed than the one that runs; restart the relay", running=VERSION)
        else:
            log.error("the sending process has ended; another one is started", exit_code=process.returncode)

    async def _talk(self, process: Process, ours: socket.socket) -> None:
        ended = asyncio.Event()
        pipe = Pipe(self._received, ended.set)
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: pipe, sock=ours)
        try:
            self._process, self._starting = process, pipe
            pipe.say(Begin(self._settings, logs.configured()))
            await ended.wait()
        finally:
            self._up.clear()
            self._process = self._starting = self._pipe = None
            transport.close()

    def _lose(self) -> None:
        """What a process that is gone was sending has its ending."""
        for answer, _ in self._asked.values():
            if not answer.done():
                answer.set_result(_lost("the sending process ended in the middle of it", maybe_arrived=True))

    def _late(self, number: int) -> None:
        """If this process was stopped for a while, the answer may be here, and only unread."""
        asyncio.get_running_loop().call_later(_UNREAD, self._hangs, number)

    def _hangs(self, number: int) -> None:
        """It is killed, and so it answers: what it was sending is lost."""
        if number in self._asked and self._pipe is not None and self._process is not None:
            log.error("the sending process does not answer, and is killed")
            _kill(self._process)
            self._up.clear()
            self._pipe = None

    def _received(self, word: Begun | Done | KeepThis) -> None:
        if isinstance(word, Begun):
            self._pipe = self._starting
            self._up.set()
            return
        answer, keep = self._asked.get(word.number, (None, None))
        if answer is None or keep is None:
            return
        if isinstance(word, Done):
            if not answer.done():
                answer.set_result(word.attempted)
        else:
            task = asyncio.create_task(self._keep(word, keep))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def _keep(self, word: KeepThis, keep: Keep) -> None:
        error: Exception | None = None
        try:
            await keep(word.progress)
        except (LeaseLostError, NotKeptError) as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001  # whoever keeps it waits for an answer
            log.error("progress could not be kept", **defect(raised))  # noqa: TRY400  # without its text
            error = NotKeptError(f"a defect: {type(raised).__name__}")
        if self._pipe is not None:
            self._pipe.say(Kept(word.number, error))


def _overdue(outgoing: Outgoing) -> float:
    """From when on a process that says nothing of a send hangs: half-way between the ends of the send and its lease."""
    return (outgoing.ends + outgoing.lease_ends) / 2


def _lost(detail: str, *, maybe_arrived: bool) -> Attempted:
    return Attempted(error=SendError(Reason.INTERNAL, Scope.ATTEMPT, detail, maybe_arrived=maybe_arrived))


async def _end(process: Process) -> None:
    """Waits for a process whose pipe is closed, and kills it where that takes too long."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await process.wait()
    except TimeoutError:
        _kill(process)
        await process.wait()
    except asyncio.CancelledError:
        _kill(process)
        raise


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
