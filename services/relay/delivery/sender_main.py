"""Runs inside the sender process: it makes the attempts that the relay requests, and answers with their results."""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from typing import Final

import uvloop

from services.relay.channels.port import Progress
from services.relay.delivery.attempt import Sender, open_local_sender
from services.relay.delivery.sender_protocol import (
    EXIT_WRONG_VERSION,
    CancelRequest,
    PingRequest,
    PingResponse,
    Pipe,
    ProgressRequest,
    ProgressResponse,
    SendRequest,
    SendResponse,
    Start,
    Started,
)
from shared import VERSION
from shared.process import logs, memory

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class _SenderMain:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.start: asyncio.Future[Start | None] = loop.create_future()
        self.send: Sender
        self.ended = asyncio.Event()
        self.pipe = Pipe(self._handle_message, self._handle_closed)
        self.sends: dict[int, asyncio.Task[None]] = {}
        self._progress_responses: dict[int, asyncio.Future[None]] = {}

    def _handle_closed(self) -> None:
        if not self.start.done():
            self.start.set_result(None)
        self.ended.set()

    def _handle_message(self, message: Start | PingRequest | SendRequest | CancelRequest | ProgressResponse) -> None:
        match message:
            case PingRequest(number):
                self.pipe.send(PingResponse(number))
            case SendRequest(number):
                task = self.sends[number] = asyncio.create_task(self._send(message))
                task.add_done_callback(lambda _: self.sends.pop(number, None))
            case CancelRequest(number):
                if number in self.sends:
                    self.sends[number].cancel()
            case ProgressResponse(number, error):
                progress_response = self._progress_responses.pop(number, None)
                if progress_response is not None and not progress_response.done():
                    progress_response.set_exception(error) if error else progress_response.set_result(None)
            case Start():
                self.start.set_result(message)

    async def _send(self, request: SendRequest) -> None:
        async def save_progress(progress: Progress) -> None:
            self._progress_responses[request.number] = asyncio.get_running_loop().create_future()
            self.pipe.send(ProgressRequest(request.number, progress))
            await self._progress_responses[request.number]

        try:
            self.pipe.send(SendResponse(request.number, await self.send(request.task, save_progress)))
        finally:
            self._progress_responses.pop(request.number, None)


async def _run_sender(sender_socket: socket.socket) -> None:
    process = _SenderMain()
    await asyncio.get_running_loop().create_connection(lambda: process.pipe, sock=sender_socket)
    begin = await process.start
    if begin is None:  # the relay was gone before it sent its settings
        return
    if begin.logging is not None:
        logs.configure(*begin.logging)
    async with open_local_sender(begin.settings) as process.send:
        process.pipe.send(Started())
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
