"""A forked command is a process like any other, to whoever starts it."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.fork_server import forked

PROGRAM = """
import atexit, json, os, signal, sys, threading, time
if sys.argv[1:] == ["end"]:
    class Last:
        def __del__(self):
            print("garbage")
    last = Last()
    last.itself = last
    del last
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
    sys.exit(3)
if sys.argv[1:] == ["wait"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print(os.getpid(), flush=True)
    for _ in range(1200):  # a signal just before a sleep would wait for its end
        time.sleep(0.05)
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("WORD"), sys.stdin.read(), __name__]))
print("an error", file=sys.stderr)
sys.exit({"one": 1, "text": "a reason", "none": None}[os.environ["ENDS"]])
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "a_program_of_tests.py").write_text(PROGRAM)
    return forked("a_program_of_tests")


@pytest.mark.parametrize(("ends", "code", "output"), [("none", 0, ""), ("one", 1, ""), ("text", 1, "a reason\n")])
def test_it_has_its_arguments_folder_environment_streams_and_exit_code(
    ends: str, code: int, output: str, command: list[str], tmp_path: Path
) -> None:
    environment = {"WORD": "\udcff", "ENDS": ends}
    for _ in range(2):
        done = subprocess.run(
            [*command, "a b", "é"],
            cwd=tmp_path,
            env=environment,
            input="typed",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, f"an error\n{output}")
        assert json.loads(done.stdout) == [["a b", "é"], str(tmp_path), "\udcff", "typed", "__main__"]


def test_it_ends_as_any_other(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "end"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a thread\nat exit\ngarbage\n", "")


@contextmanager
def waiting(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with processes.running([*command, "wait"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, int(process.stdout.readline())


def test_a_signal_reaches_it_and_may_end_it(command: list[str], tmp_path: Path) -> None:
    for sent, code in ((signal.SIGTERM, 7), (signal.SIGUSR1, -signal.SIGUSR1)):  # SIGHUP is ignored under nohup
        with waiting(command, tmp_path) as (process, _pid):
            assert processes.end(process, sent) == code


def test_one_that_is_killed_is_gone(command: list[str], tmp_path: Path) -> None:
    with waiting(command, tmp_path) as (process, pid):
        assert processes.end(process, signal.SIGKILL) == -signal.SIGKILL
        deadline = time.monotonic() + 15
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with waiting(command, tmp_path) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL


def test_one_that_ends_as_its_client_is_killed_harms_no_other(command: list[str], tmp_path: Path) -> None:
    with waiting(command, tmp_path) as (process, pid), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.connect(command[-2])  # from now on the server waits for a request, and learns both ends at once
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)  # it is told of that end first
        processes.end(process, signal.SIGKILL)
    test_it_ends_as_any_other(command, tmp_path)
