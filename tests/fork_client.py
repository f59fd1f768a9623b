"""The process that a test starts in place of a Python command: it lasts, prints and ends as that command.

It runs as a script, with nothing imported that takes time. See `fork_server.py`.
"""

import array
import marshal
import os
import select
import signal
import socket
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    address, module, *arguments = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until there is somebody to whom they are forwarded
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        request = (module, list(map(os.fsencode, arguments)), os.getcwdb(), dict(os.environb))  # noqa: PTH109  # pathlib takes time
        descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        server.sendmsg([marshal.dumps(request)], descriptors)
        pid = int(server.recv(64))
        # A signal that arrives just before a blocking call would wait for its end: the pipe ends `select` then.
        awake, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        for number in FORWARDED:
            signal.signal(number, lambda number, _frame: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        while server.fileno() not in select.select([server.fileno(), awake], [], [])[0]:
            os.read(awake, 64)
        code = int(server.recv(64))
    if code < 0:  # killed by a signal
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
