"""The process that renders templates, seen from outside: one template at a time, and killed when it is late."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Final, NamedTuple

from services.relay.delivery.template_rendering import IDLE_SECONDS, MEMORY_BYTES, SECONDS, Answer, Request

_MODULE: Final = "services.relay.delivery.template_rendering"
_ROOT: Final = Path(__file__).parents[3]
_MAX_ANSWER: Final = 8 * 1024 * 1024
"""Bytes; a hundred texts of 3,000 characters have 4 MB at most."""
_LEAST_SECONDS: Final = 0.001
_READ_BYTES: Final = 256 * 1024


class TemplateProblem(Exception):  # noqa: N818  # it is reported, and the message goes out without it
    """A template is wrong. The text has its file, the line, and what is wrong there."""


class TemplateEndlessError(TemplateProblem):
    """A template takes more time or memory than it may; it does so again."""


class TemplateLateError(TemplateProblem):
    """The process did not answer in time, for which the template may not be to blame."""


class _Running(NamedTuple):
    """A process, and how it is ended."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    end: weakref.finalize  # type: ignore[type-arg]  # of no arguments


class TemplateProcess:
    """Starts the process when it is needed, and again when it has ended. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_ready = False
        self._used_at = 0.0

    def start(self) -> None:
        """Starts the process, unless it runs, and does not wait for it."""
        with self._lock:
            self._start()

    def render(self, request: Request, seconds: float) -> list[str]:
        """The texts of a template.

        Args:
            request: what is to be rendered.
            seconds: how long that may take; a process that still starts is left to the next request.

        Raises:
            TemplateProblem: there are none.
        """
        ends_at = time.monotonic() + seconds
        if not self._lock.acquire(timeout=max(seconds, 0)):
            raise TemplateLateError(f"{request['name']}: too many messages wait for their texts")
        try:
            return self._render(request, ends_at)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._stop()

    def _render(self, request: Request, ends_at: float) -> list[str]:
        name, connection = request["name"], self._start()
        try:
            if not self._is_ready:
                _receive_line(connection, ends_at)
                self._is_ready = True
        except TimeoutError:
            raise TemplateLateError(f"{name}: the process that renders has not started yet") from None
        except OSError:
            self._stop()
            raise TemplateLateError(f"{name}: the process that renders cannot start") from None
        try:
            connection.settimeout(max(ends_at - time.monotonic(), _LEAST_SECONDS))
            connection.sendall(json.dumps(request, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
            answer: Answer = json.loads(_receive_line(connection, ends_at))
        except TimeoutError:
            self._stop()
            raise TemplateLateError(f"{name}: the process that renders did not answer in time") from None
        except OSError:
            self._stop()
            limits = f"{SECONDS:g} s of the processor or {MEMORY_BYTES // 1024**2} MiB of memory"
            raise TemplateEndlessError(f"{name}: takes more than {limits}") from None
        self._used_at = time.monotonic()
        if answer["is_out_of_memory"]:
            self._stop()
            raise TemplateEndlessError(answer["problem"])
        if answer["problem"]:
            raise TemplateProblem(answer["problem"])
        return answer["texts"]

    def _start(self) -> socket.socket:
        """The connection to the process, which may still be starting."""
        if self._running is not None:
            is_used = time.monotonic() - self._used_at < IDLE_SECONDS / 2
            if self._running.process.poll() is None and is_used:
                return self._running.connection
            self._stop()
        ours, its = socket.socketpair()
        with its:
            # Without the relay's environment, which may have secrets, and in a session of its own, so that the
            # terminal's Ctrl-C reaches only the relay.
            process = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-P", "-m", _MODULE],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._running = _Running(process, ours, weakref.finalize(self, _end, process, ours))
        self._is_ready, self._used_at = False, time.monotonic()
        return ours

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.end()


def _receive_line(connection: socket.socket, ends_at: float) -> bytes:
    """A line. Raises TimeoutError, and OSError where the other end is gone."""
    line = b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(ends_at - time.monotonic(), _LEAST_SECONDS))
        received = connection.recv(_READ_BYTES)
        if not received or len(line) > _MAX_ANSWER:
            raise ConnectionError("the process has ended")
        line += received
    return line


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()
