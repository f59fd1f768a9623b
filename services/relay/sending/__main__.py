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
from services.relay.sending.here import here
from services.relay.sending.outgoing import Send
from services.relay.sending.pipe import Pipe
from services.relay.sending.words import OTHER_VERSION, Begin, Begun, Do, Done, KeepThis, Kept, Stop
from shared import VERSION, logs, memory

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class _Process:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begin: asyncio.Future[Begin | None] = loop.create_future()
        self.send: Send
        self.ended = asyncio.Event()
        self.pipe = Pipe(self._received, self._lost)
        self.sends: dict[int, asyncio.Task[None]] = {}
        self._kept: dict[int, asyncio.Future[None]] = {}

    def _lost(self) -> None:
        if not self.begin.done():
            self.begin.set_result(None)
        self.ended.set()

    def _received(self, word: Begin | Do | Stop | Kept) -> None:
        match word:
            case Do(number):
                task = self.sends[number] = asyncio.create_task(self._do(word))
                task.add_done_callback(lambda _: self.sends.pop(number, None))
            case Stop(number):
                if number in self.sends:
                    self.sends[number].cancel()
            case Kept(number, error):
                kept = self._kept.pop(number, None)
                if kept is not None and not kept.done():
                    kept.set_exception(error) if error else kept.set_result(None)
            case Begin():
                self.begin.set_result(word)

    async def _do(self, word: Do) -> None:
        async def keep(progress: Progress) -> None:
            self._kept[word.number] = asyncio.get_running_loop().create_future()
            self.pipe.say(KeepThis(word.number, progress))
            await self._kept[word.number]

        try:
            self.pipe.say(Done(word.number, await self.send(word.outgoing, keep)))
        finally:
            self._kept.pop(word.number, None)


async def _serve(theirs: socket.socket) -> None:
    process = _Process()
    await asyncio.get_running_loop().create_connection(lambda: process.pipe, sock=theirs)
    begin = await process.begin
    if begin is None:  # the relay was gone before it could say anything
        return
    if begin.logging is not None:
        logs.configure(*begin.logging)
    async with here(begin.settings) as process.send:
        process.pipe.say(Begun())
        gc.freeze()  # as the relay itself: what is there by now stays
        gc.set_threshold(100_000, 50, 50)
        await process.ended.wait()
        sends = list(process.sends.values())
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)


def _end_with(relay: int) -> None:
    """Has this process killed when the relay ends, also while it is stopped: continued later, it would send the past.

    Where there is no such signal, the end of the pipe remains, which a process has to run for to notice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != relay:  # it ended before
        sys.exit()


if __name__ == "__main__":
    _end_with(int(sys.argv[3]))
    # Whoever stops the relay sends these to all of its processes. It says itself when this one shall end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[2] != VERSION:
        sys.exit(OTHER_VERSION)
    memory.keep_little()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))
