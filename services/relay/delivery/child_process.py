"""A process that does one thing at a time for this one, and can be killed: both ends of it.

What is asked of it may take any time and memory, so the kernel bounds both, and nothing of the relay is lost with it.
Both sides write frames: the length in four bytes, then so many bytes. Its first frame, an empty one, says that
everything is imported. It ends when nothing was asked for a while, and when its input is closed.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

IDLE_SECONDS: Final = 300
_MAX_FRAME: Final = 8 * 1024 * 1024
_LEAST_SECONDS: Final = 0.001
_KILL_SECONDS: Final = 0.05


class ChildLateError(Exception):
    """It gave no answer in time, for which the request may not be to blame; the text says why."""


class ChildEndedError(Exception):
    """It ended while it had the request."""


class _Running(NamedTuple):
    """A process, and how it is ended."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    end: weakref.finalize  # type: ignore[type-arg]  # of no arguments


class ChildProcess:
    """Starts a module when it is needed, and again when it has ended. Any thread may use it.

    Args:
        module: its main program calls `serve`.
        folder_variable: the variable that names its temporary folder, where it needs one.
        environment: more variables. It gets none of this process, which may have secrets.
    """

    def __init__(self, module: str, folder_variable: str = "", **environment: str) -> None:
        self._module = module
        self._folder_variable = folder_variable
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._environment = environment
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_ready = False
        self._used_at = 0.0

    def start(self) -> None:
        """Starts the process, unless it runs, and waits for nothing."""
        if self._lock.acquire(blocking=False):
            try:
                self._start()
            finally:
                self._lock.release()

    def ask(self, request: bytes, seconds: float) -> bytes:
        """The answer to a request.

        A process that answers for longer is killed; one that still starts is left to the next request.

        Raises:
            ChildLateError: try again.
            ChildEndedError: it ends at this request.
        """
        ends_at = time.monotonic() + seconds
        if not self._lock.acquire(timeout=max(seconds, 0)):
            raise ChildLateError("too many wait for it")
        try:
            return self._ask(request, ends_at)
        finally:
            self._lock.release()

    def close(self) -> None:
        is_locked = False
        while not is_locked:  # again, since who holds the lock may only now have started it
            running = self._running
            if running is not None:
                running.process.kill()  # so that nobody waits for an answer
            is_locked = self._lock.acquire(timeout=_KILL_SECONDS)
        try:
            self._stop()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None
        finally:
            self._lock.release()

    def _ask(self, request: bytes, ends_at: float) -> bytes:
        try:
            connection = self._start()
            if not self._is_ready:
                _receive(connection, ends_at)
                self._is_ready = True
        except TimeoutError:
            raise ChildLateError("it has not started yet") from None
        except OSError:
            self._stop()
            raise ChildLateError("it cannot start") from None
        try:
            connection.settimeout(max(ends_at - time.monotonic(), _LEAST_SECONDS))
            connection.sendall(len(request).to_bytes(4, "big") + request)
            answer = _receive(connection, ends_at)
        except TimeoutError:
            self._stop()
            raise ChildLateError("it did not answer in time") from None
        except OSError:
            self._stop()
            raise ChildEndedError from None
        self._used_at = time.monotonic()
        return answer

    def _start(self) -> socket.socket:
        """The connection to the process, which may still be starting."""
        if self._running is not None:
            is_used = time.monotonic() - self._used_at < IDLE_SECONDS / 2
            if self._running.process.poll() is None and is_used:
                return self._running.connection
            self._stop()
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), **self._environment}
        if self._folder_variable:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="keypulse-")
            environment[self._folder_variable] = self._folder.name
        ours, its = socket.socketpair()
        with its:
            # In another session, so that the terminal's Ctrl-C reaches only the relay.
            process = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-P", "-m", self._module],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        self._running = _Running(process, ours, weakref.finalize(self, _end, process, ours))
        self._is_ready, self._used_at = False, time.monotonic()
        return ours

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.end()


def _receive(connection: socket.socket, ends_at: float) -> bytes:
    """A frame. Raises TimeoutError, and OSError where the other end is gone."""
    received = b""
    while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
        connection.settimeout(max(ends_at - time.monotonic(), _LEAST_SECONDS))
        piece = connection.recv(256 * 1024)
        if not piece or len(received) > _MAX_FRAME:
            raise ConnectionError("the process has ended")
        received += piece
    return received[4:]


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def serve(answer: Callable[[bytes], bytes], memory_bytes: int) -> None:
    """The main program of a child: answers each request, within so much memory."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with socket.socket(fileno=0) as connection, connection.makefile("rwb") as stream:
        stream.write(bytes(4))
        stream.flush()
        signal.alarm(IDLE_SECONDS)
        while len(head := stream.read(4)) == 4:
            request = stream.read(int.from_bytes(head, "big"))
            signal.alarm(0)
            answered = answer(request)
            stream.write(len(answered).to_bytes(4, "big") + answered)
            stream.flush()
            del request, answered  # before the next one is read
            signal.alarm(IDLE_SECONDS)
