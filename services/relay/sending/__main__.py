"""`python -m services.relay.sending FD VERSION RELAY`: the process that sends.

`apart` starts it in the relay, whose process id is RELAY, and with which it ends.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from typing import Final

import uvloop

from services.relay.channels.channel import Progress
from services.relay.sending.here import open_local_sender
from services.relay.sending.outgoing import Sender
from services.relay.sending.pipe import Pipe
from services.relay.sending.words import EXIT_WRONG_VERSION, Start, Started, SendRequest, SendResponse, ProgressRequest, ProgressResponse, CancelRequest
from shared import VERSION, logs, memory

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

    def _handle_message(self, message: Start | SendRequest | CancelRequest | ProgressResponse) -> None:
        match message:
            case SendRequest(number):
                task = self.sends[number] = asyncio.create_task(self._send(message))
                task.add_done_callback(lambda _: self.sends.pop(number, None))
            case CancelRequest(number):
                if number in self.sends:
                    self.sends[number].cancel()
            case ProgressResponse(number, error):
                kept = self._progress_responses.pop(number, None)
                if kept is not None and not kept.done():
                    kept.set_exception(error) if error else kept.set_result(None)
            case Start():
                self.start.set_result(message)

    async def _send(self, request: SendRequest) -> None:
        async def keep(progress: Progress) -> None:
            self._progress_responses[request.number] = asyncio.get_running_loop().create_future()
            self.pipe.send(ProgressRequest(request.number, progress))
            await self._progress_responses[request.number]

        try:
            self.pipe.send(SendResponse(request.number, await self.send(request.task, keep)))
        finally:
            self._progress_responses.pop(request.number, None)


async def _run_sender(sender_socket: socket.socket) -> None:
    process = _SenderMain()
    await asyncio.get_running_loop().create_connection(lambda: process.pipe, sock=sender_socket)
    begin = await process.start
    if begin is None:  # the relay was gone before it could say anything
        return
    if begin.logging is not None:
        logs.configure(*begin.logging)
    async with open_local_sender(begin.settings) as process.send:
        process.pipe.send(Started())
        gc.freeze()  # as the relay itself: what is there by now stays
        gc.set_threshold(100_000, 50, 50)
        await process.ended.wait()
        sends = list(process.sends.values())
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)


def _die_with_parent(parent_pid: int) -> None:
    """Has this process killed when the relay ends, also while it is stopped: continued later, it would send the past.

    Where there is no such signal, the end of the pipe remains, which a process has to run for to notice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:  # it ended before
        sys.exit()


if __name__ == "__main__":
    _die_with_parent(int(sys.argv[3]))
    # Whoever stops the relay sends these to all of its processes. It says itself when this one shall end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[2] != VERSION:
        sys.exit(EXIT_WRONG_VERSION)
    memory.limit_retained_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_sender(socket.socket(fileno=int(sys.argv[1]))))
