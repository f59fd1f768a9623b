"""Sends in a process beside the one that accepts and commits: Python runs on one core in each (ADR 4).

The relay starts it and exchanges messages with it over a socket that only these two have; the first one is `START`. All
messages of one iteration of the event loop go out as one frame: its length in eight bytes, then the pickle of a list.

It has no data that is not in the outbox. When it exits, its deliveries count as possibly sent and are
tried again, and the relay starts another one. It exits with the relay. One that does not respond is killed before the
lease of a delivery that it sends expires: nobody else may claim that delivery while this process could still send it.
"""

import asyncio
import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from itertools import count
from typing import Any, Final, NamedTuple, cast

import structlog
import uvloop

from services.relay.channels.port import DeliveryLeaseLostError, Progress, SendError, SendReason, SendScope
from services.relay.delivery.attempt import (
    ProgressNotSavedError,
    SaveProgress,
    Sender,
    SenderSettings,
    SendResult,
    open_local_sender,
)
from services.relay.model import DeliveryTask
from shared import VERSION
from shared.process import concurrency as memory
from shared.process import logs
from shared.process.logs import describe_exception

EXIT_WRONG_VERSION: Final = 3
"""The exit code of a process whose code is of another version than the relay, and may not understand it."""
# Not `-m`: pickle finds the messages' classes in this module, not in one called `__main__`.
COMMAND: Final = (
    "import gc; gc.disable()\n"  # to look for garbage among what is imported is a third of the start
    "from services.relay.delivery.sender_process import main; gc.freeze(); gc.enable(); main()"
)


class Kind(Enum):
    """What a message between the two processes says."""

    START = auto()
    """To the process: the settings, and what `logs.configure` was called with."""
    STARTED = auto()
    SEND = auto()
    """To the process: a task."""
    CANCEL = auto()
    PING = auto()
    SAVE = auto()
    """From the process: progress to commit."""
    SAVED = auto()
    """To the process: the error, None if it is committed."""
    ANSWER = auto()
    """From the process: the result of what was sent, or of a ping."""


class PipeMessage(NamedTuple):
    """One message; `number` is that of the request that it belongs to."""

    kind: Kind
    number: int = 0
    value: Any = None


_LENGTH: Final = 8


class Pipe(asyncio.Protocol):
    """One end: calls `on_message` with each message, and `on_closed` when the other end is gone."""

    def __init__(self, on_message: Callable[[PipeMessage], None], on_closed: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._unsent: list[PipeMessage] = []

    def send(self, kind: Kind, number: int = 0, value: object = None) -> None:
        """Sends a message with the others of this iteration of the event loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(PipeMessage(kind, number, value))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._on_closed()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._buffer[:_LENGTH], "big")
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view, view[_LENGTH:end] as frame:
                messages = pickle.loads(frame)  # noqa: S301  # nobody else has the socket
            del self._buffer[:end]
            for message in messages:
                self._on_message(message)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:  # else the other end is gone, and `on_closed` was called
            frame = pickle.dumps(unsent, pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((len(frame).to_bytes(_LENGTH, "big"), frame))


_RESTART_SECONDS: Final = 1.0
"""Seconds before another one is started."""
_READ_GRACE: Final = 0.2
"""Seconds to read what the process has sent meanwhile."""
_KILL_MARGIN: Final = 2 * _READ_GRACE
"""Seconds between the end of an attempt and that of its lease; with less, it would be killed too late."""
_CLOSE_SECONDS: Final = 1.0
_PING_SECONDS: Final = 2.0
"""Seconds after which a process that does not answer counts as hanging, for a person who looks."""
_START_SECONDS: Final = 10.0
"""Seconds that a process may take to start, for a person who looks: after a reload, too, there is none at first."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_sender_process(settings: SenderSettings) -> AsyncIterator[Sender]:
    """Sends while the body runs; after it, the process is gone.

    Call it in the main thread: Linux kills the process when the thread that started it ends.
    """
    sending = _SenderProcess(settings)
    running = asyncio.create_task(sending.run(), name="sender process")
    try:
        yield sending
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _SenderProcess:
    def __init__(self, settings: SenderSettings) -> None:
        self._settings = settings
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._savers: dict[int, SaveProgress] = {}
        self._progress_tasks: set[asyncio.Task[None]] = set()
        self._process: Process | None = None
        self._starting: Pipe | None = None
        self._pipe: Pipe | None = None
        """Where one can send."""
        self._started = asyncio.Event()

    async def __call__(self, task: DeliveryTask, save_progress: SaveProgress) -> SendResult:
        if task.lease_ends - task.attempt_ends < _KILL_MARGIN:
            return SendResult(lease_lost=True)
        while (pipe := self._pipe) is None:
            try:
                async with asyncio.timeout_at(task.attempt_ends):
                    await self._started.wait()
            except TimeoutError:
                return _build_lost_result("no sender process could be started", maybe_arrived=False)
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        answer: asyncio.Future[SendResult] = loop.create_future()
        self._answers[number], self._savers[number] = answer, save_progress
        pipe.send(Kind.SEND, number, task)
        # Without a result it counts as hanging halfway between the end of the attempt and that of its lease.
        kill_timer = loop.call_at((task.attempt_ends + task.lease_ends) / 2, self._check_unread, number)
        try:
            return await answer
        except asyncio.CancelledError:
            pipe.send(Kind.CANCEL, number)
            raise
        finally:
            kill_timer.cancel()
            del self._answers[number], self._savers[number]

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._started.wait()
        except TimeoutError:
            return False
        if (pipe := self._pipe) is None:
            return False
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        pipe.send(Kind.PING, number)
        try:
            async with asyncio.timeout(_PING_SECONDS):
                return await answer is True
        except TimeoutError:
            return False
        finally:
            del self._answers[number]

    async def run(self) -> None:
        """Keeps a process until it is cancelled."""
        try:
            while True:
                try:
                    await self._run_process()
                except OSError as error:
                    log.error("sender process cannot be started", error=error.strerror)  # noqa: TRY400
                except Exception:
                    log.exception("unexpected error in the sender process supervisor; it continues")
                await asyncio.sleep(_RESTART_SECONDS)
        finally:
            for task in self._progress_tasks:
                task.cancel()
            await asyncio.gather(*self._progress_tasks, return_exceptions=True)

    async def _run_process(self) -> None:
        """Starts a process, and returns when it has exited."""
        relay_socket, sender_socket = socket.socketpair()
        with relay_socket, sender_socket:
            arguments = (str(sender_socket.fileno()), VERSION, str(os.getpid()))
            command = (sys.executable, "-P", "-c", COMMAND, *arguments)
            # It imports the same modules as this process, whatever its working directory contains.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            # In its own session, so that the terminal's Ctrl-C reaches only the relay.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[sender_socket.fileno()],
                start_new_session=True,
                env=environment,
            )
            sender_socket.close()
            try:
                await self._serve_process(process, relay_socket)
            finally:
                try:
                    await _stop_process(process)
                finally:
                    self._fail_requests()  # not before: then another process may send them
        if process.returncode == EXIT_WRONG_VERSION:
            log.error("installed version differs from the running version", running_version=VERSION)
        else:
            log.error("sender process exited; restarting it", exit_code=process.returncode)

    async def _serve_process(self, process: Process, relay_socket: socket.socket) -> None:
        ended = asyncio.Event()
        pipe = Pipe(self._handle_message, ended.set)
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: pipe, sock=relay_socket)
        try:
            self._process, self._starting = process, pipe
            pipe.send(Kind.START, value=(self._settings, logs.get_configuration()))
            await ended.wait()
        finally:
            self._started.clear()
            self._process = self._starting = self._pipe = None
            transport.close()

    def _fail_requests(self) -> None:
        """Ends all requests of a process that is gone."""
        lost = _build_lost_result("the sender process exited during the attempt", maybe_arrived=True)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(lost)

    def _check_unread(self, number: int) -> None:
        """Waits a moment: if the relay itself was stopped for a while, the result may be in its socket, unread."""
        asyncio.get_running_loop().call_later(_READ_GRACE, self._kill_unresponsive, number)

    def _kill_unresponsive(self, number: int) -> None:
        """Kills the process; its requests end when it is gone."""
        if number in self._savers and self._pipe is not None and self._process is not None:
            log.error("sender process does not respond; killing it")
            _kill(self._process)
            self._started.clear()
            self._pipe = None

    def _handle_message(self, message: PipeMessage) -> None:
        if message.kind is Kind.STARTED:
            self._pipe = self._starting
            self._started.set()
        elif message.kind is Kind.ANSWER:
            answer = self._answers.get(message.number)
            if answer is not None and not answer.done():
                answer.set_result(message.value)
        elif (save := self._savers.get(message.number)) is not None:
            task = asyncio.create_task(self._save_progress(message, save))
            self._progress_tasks.add(task)
            task.add_done_callback(self._progress_tasks.discard)

    async def _save_progress(self, message: PipeMessage, save: SaveProgress) -> None:
        error: Exception | None = None
        try:
            await save(message.value)
        except (DeliveryLeaseLostError, ProgressNotSavedError) as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001  # the process waits for an answer
            log.error("progress could not be saved", **describe_exception(raised))  # noqa: TRY400  # without its text
            error = ProgressNotSavedError(f"a defect: {type(raised).__name__}")
        if self._pipe is not None:
            self._pipe.send(Kind.SAVED, message.number, error)


def _build_lost_result(detail: str, *, maybe_arrived: bool) -> SendResult:
    return SendResult(error=SendError(SendReason.INTERNAL, SendScope.ATTEMPT, detail, maybe_arrived=maybe_arrived))


async def _stop_process(process: Process) -> None:
    """Waits for a process whose pipe is closed, and kills it if that takes too long."""
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


_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class _SenderMain:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.start: asyncio.Future[tuple[SenderSettings, tuple[Any, ...] | None] | None] = loop.create_future()
        self.send: Sender
        self.ended = asyncio.Event()
        self.pipe = Pipe(self._handle_message, self._handle_closed)
        self.sends: dict[int, asyncio.Task[None]] = {}
        self._saves: dict[int, asyncio.Future[None]] = {}

    def _handle_closed(self) -> None:
        if not self.start.done():
            self.start.set_result(None)
        self.ended.set()

    def _handle_message(self, message: PipeMessage) -> None:
        number = message.number
        if message.kind is Kind.SEND:
            task = self.sends[number] = asyncio.create_task(self._send(number, message.value))
            task.add_done_callback(lambda _: self.sends.pop(number, None))
        elif message.kind is Kind.CANCEL and number in self.sends:
            self.sends[number].cancel()
        elif message.kind is Kind.SAVED:
            saved = self._saves.pop(number, None)
            if saved is not None and not saved.done():
                saved.set_exception(message.value) if message.value else saved.set_result(None)
        elif message.kind is Kind.PING:
            self.pipe.send(Kind.ANSWER, number, value=True)
        elif message.kind is Kind.START:
            self.start.set_result(message.value)

    async def _send(self, number: int, task: DeliveryTask) -> None:
        async def save_progress(progress: Progress) -> None:
            self._saves[number] = asyncio.get_running_loop().create_future()
            self.pipe.send(Kind.SAVE, number, progress)
            await self._saves[number]

        try:
            self.pipe.send(Kind.ANSWER, number, await self.send(task, save_progress))
        finally:
            self._saves.pop(number, None)


async def _run_sender(sender_socket: socket.socket) -> None:
    process = _SenderMain()
    await asyncio.get_running_loop().create_connection(lambda: process.pipe, sock=sender_socket)
    begin = await process.start
    if begin is None:  # the relay was gone before it sent its settings
        return
    settings, logging = begin
    if logging is not None:
        logs.configure(*logging)
    async with open_local_sender(settings) as process.send:
        process.pipe.send(Kind.STARTED)
        gc.freeze()  # as in `app.serve`
        gc.set_threshold(100_000, 50, 50)
        await process.ended.wait()
        sends = list(process.sends.values())
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)


def _die_with_parent(parent_pid: int) -> None:
    """Has Linux kill this process when the relay ends, even while it is stopped: else it would send when continued.

    Elsewhere it exits when its pipe is closed, which a stopped process does not notice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:  # it had exited before
        sys.exit()


def main() -> None:
    """Sends until the relay ends; its arguments are FD VERSION RELAY_PID."""
    _die_with_parent(int(sys.argv[3]))
    # A supervisor sends these to all processes of the relay; only the relay decides when this one exits.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[2] != VERSION:
        sys.exit(EXIT_WRONG_VERSION)
    memory.limit_retained_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_sender(socket.socket(fileno=int(sys.argv[1]))))
