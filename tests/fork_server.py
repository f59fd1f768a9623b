"""Python commands that start in a hundredth of a second, since a server that imported everything forks each of them.

To import what a service needs takes a second of CPU, far longer than most tests of its command line. A command is a
process of its own nevertheless: with its arguments, folder, environment, standard streams, signals and exit code.

Not for tests of what is imported, or of a process's memory: these take `sys.executable -m`. A process that is
stopped by SIGSTOP, or whose children matter, is forked without a client in between (`fork`).
"""

import array
import asyncio
import atexit
import gc
import importlib
import marshal
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CLIENT = Path(__file__).with_name("fork_client.py")
_MODULES = (
    "services.backend",
    "services.exporter",
    "services.relay",
    "services.rotator",
    "ops.demo.stand_ins",
    "ops.kms_emulator",
    "ops.smoke",
)
_LATE = ("psycopg", "shared.kms.gcp.client", "ops.kms_emulator.grpc_service")
"""What they import only when it is needed."""
LISTENS = b"listens\n"
_SHARED = "TESTS_FORK_SERVER"


def forked(module: str) -> list[str]:
    """What starts `python -m MODULE`, or `python FILE.py`; the arguments follow."""
    return [sys.executable, "-I", "-S", str(CLIENT), _find(), module]


class Forked:
    """A command whose process is known, to look at it, stop it and kill it: a client would be in between."""

    def __init__(self, pid: int, server: socket.socket) -> None:
        self.pid = pid
        self._server = server
        self._server.settimeout(0)
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        if self._code is None:
            with suppress(BlockingIOError):
                self._end(self._server.recv(64))
        return self._code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        if self.returncode is None:
            self._end(await asyncio.get_running_loop().sock_recv(self._server, 64))
        assert self._code is not None
        return self._code

    def _end(self, code: bytes) -> None:
        self._code = int(code)
        self._server.close()


def fork(module: str, *arguments: str, output: IO[bytes]) -> Forked:
    """Starts `python -m MODULE ARGUMENTS`, which ends with this process at the latest."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(_find())
    request = (module, list(map(os.fsencode, arguments)), os.fsencode(Path.cwd()), dict(os.environb))
    streams = array.array("i", [0, output.fileno(), output.fileno()])
    server.sendmsg([marshal.dumps(request)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    return Forked(int(server.recv(64)), server)


@cache
def _find() -> str:
    """Where the server listens: the one of this run, else one of this process."""
    return os.environ.get(_SHARED) or start("tests.fork_server")


def share() -> None:
    """Starts one for this process and for those that it starts from now on: a start takes a second of CPU."""
    os.environ[_SHARED] = start("tests.fork_server")


def start(server_module: str) -> str:
    """A server, which ends with this process; gives where it listens."""
    folder = tempfile.TemporaryDirectory(prefix="fork-")
    address = f"{folder.name}/server"
    program = [sys.executable, "-m", server_module, address]
    server = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout
    assert server.stdout.readline() == LISTENS
    server.stdout.close()

    def end() -> None:
        server.communicate(timeout=10)
        folder.cleanup()

    atexit.register(end)
    return address


class Server:
    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(64)
        self._ended, self._wakeup = socket.socketpair()
        self._wakeup.settimeout(0)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector = selectors.DefaultSelector()
        for of in (0, self._listener, self._ended):
            self._selector.register(of, selectors.EVENT_READ)
        self._clients: dict[int, socket.socket] = {}

    def serve(self) -> tuple[str, list[str]] | None:
        """Gives, in each forked process, the module to run and its arguments; None in the server, at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is self._listener:
                    client, _address = self._listener.accept()
                    if forked := self._fork(client):
                        return forked
                elif key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._reap()
                elif self._clients.get(key.data) is key.fileobj:  # it is gone: killed; not one that was just reaped
                    self._selector.unregister(key.fileobj)
                    with suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGKILL)

    def _fork(self, client: socket.socket) -> tuple[str, list[str]] | None:
        data, ancillary, _flags, _address = client.recvmsg(1 << 20, socket.CMSG_SPACE(3 * 4))
        if not ancillary:  # the client was killed before it said what it wants
            client.close()
            return None
        streams = array.array("i", ancillary[0][2])
        pid = os.fork()
        if pid == 0:
            client.close()
            self._close()
            return _become(data, streams)
        for stream in streams:
            os.close(stream)
        with suppress(OSError):  # the client is gone, which the selector tells
            client.send(b"%d" % pid)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)
        return None

    def _close(self) -> None:
        """In a forked process, which must not answer for the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for one in (self._listener, self._ended, self._wakeup, *self._clients.values()):
            one.close()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                client = self._clients.pop(ended[0])
                with suppress(KeyError):
                    self._selector.unregister(client)
                with suppress(OSError):
                    client.send(b"%d" % os.waitstatus_to_exitcode(ended[1]))
                client.close()


def _become(data: bytes, streams: "array.array[int]") -> tuple[str, list[str]]:
    """Makes this forked process the command that `data` describes."""
    module, arguments, folder, environment = marshal.loads(data)  # noqa: S302  # of a process of ours
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environment)
    sys.stdout.reconfigure(line_buffering=os.isatty(1), encoding=os.environ.get("PYTHONIOENCODING"))  # type: ignore[union-attr]
    sys.path[0] = str(Path.cwd())
    if action := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)  # type: ignore[arg-type]
    return module, [os.fsdecode(argument) for argument in arguments]


def main() -> None:
    server = Server(sys.argv[1])
    os.write(1, LISTENS)  # whoever asks from now on waits until all is imported
    thresholds = gc.get_threshold()
    gc.set_threshold(0)  # nothing of what is imported is garbage
    for module in _MODULES:
        importlib.import_module(f"{module}.__main__")
        del sys.modules[f"{module}.__main__"]
    for module in _LATE:
        importlib.import_module(module)
    gc.freeze()
    gc.set_threshold(*thresholds)
    if forked := server.serve():
        module, arguments = forked
        sys.argv = [module, *arguments]
        code = 0
        try:
            if module.endswith(".py"):
                runpy.run_path(module, run_name="__main__")
            else:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            if not (ended.code is None or isinstance(ended.code, int)):
                raise
            code = ended.code or 0
        end(code)


def end(code: int) -> None:
    """Ends this process as Python does, but that no module is taken apart: that takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends what it forked
    atexit._run_exitfuncs()
    gc.collect()  # what is in no module may have something to say at its end
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed: Python has a code of its own for that
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
