"""Ends what a test has started: each wait has a limit, and behind the limit is a kill."""

import asyncio
import os
import signal
import subprocess
from asyncio.subprocess import Process
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.fork_server import Forked

STOP_SECONDS = 30.0
AsyncProcess = Process | Forked


@contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start a program, and kill what is left of it at the end."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        end(process, signal.SIGKILL)


def end(process: "subprocess.Popen[Any]", number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
    """Send a signal and return the exit code; a process that stays longer is killed, and the test fails."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=STOP_SECONDS)
        raise AssertionError(_describe(process.args, seconds, signal.Signals(number).name)) from None
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def end_and_read(process: "subprocess.Popen[str]", number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> str:
    """Do what `end` does, and return what the process still writes to standard error, which is a pipe."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        end(process, signal.SIGKILL)
        raise AssertionError(_describe(process.args, seconds, signal.Signals(number).name)) from None


async def stop(process: AsyncProcess, number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
    """Do what `end` does for a process of asyncio."""
    _signal(process, number)
    try:
        return await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        await kill(process)
        raise AssertionError(_describe(f"process {process.pid}", seconds, signal.Signals(number).name)) from None


async def finish(process: Process, seconds: float = 60, given: bytes | None = None) -> tuple[bytes, bytes]:
    """Return what a process prints until it ends by itself; one that stays longer is killed, and the test fails."""
    try:
        out, err = await asyncio.wait_for(process.communicate(given), seconds)
    except TimeoutError:
        raise AssertionError(_describe(f"process {process.pid}", seconds, "its start")) from None
    finally:
        await kill(process)
    return out or b"", err or b""


async def kill(process: AsyncProcess) -> None:
    """Kill a process, whether or not it still runs."""
    _signal(process, signal.SIGKILL)
    await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _signal(process: AsyncProcess, number: int) -> None:
    """Not by `send_signal`: that reaps one that has just ended, and asyncio then knows no exit code."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _describe(process: object, seconds: float, since: str) -> str:
    return f"{process} was still there {seconds:g} s after {since}, and was killed"
