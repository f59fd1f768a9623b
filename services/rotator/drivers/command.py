"""The driver `command`: `docker exec -i`, `kubectl exec -i` or `ssh` leads to `keypulse-backend admin`.

One line of JSON to its standard input is one request, and one line of its standard output the answer:

    {"method": "POST", "path": "rotate", "caller": "…", "body": {…}}
    {"status": 200, "body": {…}}

So no value ever stands on a command line, where `ps` would show it and a shell would read it. One process serves one
call after another; while a long one is under way, another process keeps the lease. One that does not answer in time is
ended, because its answer would be taken for the next one's.
"""

import asyncio
import json
import os
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError

from services.rotator.drivers.remote import (
    ANSWER_BYTES,
    Answer,
    Question,
    RemoteAdministration,
    too_many_values,
)
from shared.keyring.administration import Administration, RefusedError, UnreachableError
from shared.kms.settings import KeySettings
from shared.settings import Duration, Section

_END_SECONDS: Final = 5.0
"""How long the process may take to end once its standard input is closed."""
_SHOWN: Final = 300
"""Characters of standard error that a sentence repeats."""


class CommandSettings(Section):
    """A command, which no shell reads."""

    kind: Literal["command"]
    argv: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Such as `[kubectl, exec, -i, deploy/backend, --, keypulse-backend, admin, --config, /etc/keypulse.yml]`."""
    timeout: Duration = 300.0
    """Of one call."""

    @property
    def where(self) -> str:
        """Names the keyring, as far as a line has room for it."""
        return " ".join(shlex.join(self.argv).split())[:80]

    @asynccontextmanager
    async def opened(self, kms: KeySettings, caller: str) -> AsyncIterator[Administration]:
        """The administration behind the command, which starts at the first call."""
        del kms
        command = _Command(self, caller)
        try:
            yield RemoteAdministration(command.name, command.carry)
        finally:
            await command.close()


class _NoAnswerError(Exception):
    """The message is why."""


class _AnswerLine(BaseModel):
    status: int
    body: JsonValue = None


class _Command:
    def __init__(self, settings: CommandSettings, caller: str) -> None:
        self._settings = settings
        self._caller = caller
        self._idle: list[_Running] = []
        self.name = settings.where

    async def carry(self, question: Question) -> Answer:
        line = json.dumps({**question._asdict(), "caller": self._caller}).encode() + b"\n"
        running = self._idle.pop() if self._idle else await self._started()
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer = _answer(await running.ask(line))
        except TimeoutError:
            why = f"no answer within {self._settings.timeout:g} s; it may have been done: look with `status`"
        except _NoAnswerError as error:
            why = str(error)
        except asyncio.CancelledError:
            await running.end(0.0)
            raise
        else:
            self._idle.append(running)
            return answer
        said = await running.end(_END_SECONDS)
        raise UnreachableError(f"{self.name}: {why}{said}")

    async def close(self) -> None:
        """Ends what was started, once no call is under way."""
        await asyncio.gather(*(running.end(_END_SECONDS) for running in self._idle))

    async def _started(self) -> "_Running":
        try:
            # A session of its own: neither does Ctrl-C end it before the lease is given up, nor can ssh ask for a
            # password on the terminal, and wait.
            process = await asyncio.create_subprocess_exec(
                *self._settings.argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=ANSWER_BYTES, start_new_session=True
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "an argument holds a NUL character"
            raise RefusedError(f"{self.name}: cannot be started: {why}; correct driver.argv") from None
        return _Running(process)


def _answer(line: bytes) -> Answer:
    if not line.endswith(b"\n"):
        raise _NoAnswerError("it ended before it answered; try the command by hand")
    if too_many := too_many_values(line):
        raise _NoAnswerError(f"the answer {too_many}")
    try:
        told = _AnswerLine.model_validate_json(line)
    except ValidationError:
        raise _NoAnswerError(
            f"expected one line of JSON for an answer, got {line[:80].decode(errors='replace')!r}; the command has to "
            "lead to `keypulse-backend admin --config …`, and nothing else may write to its standard output"
        ) from None
    return Answer(told.status, json.dumps(told.body).encode())


class _Running:
    """The process, and what it says on standard error, which is read so that it never waits for room there."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._said = b""
        self._listening = asyncio.create_task(self._listen())

    async def ask(self, line: bytes) -> bytes:
        """The line that answers `line`, or what there was of it at the end of standard output."""
        assert self.process.stdin  # noqa: S101 - a pipe
        assert self.process.stdout  # noqa: S101 - likewise
        with suppress(ConnectionError):  # it has ended: standard output says so
            self.process.stdin.write(line)
            await self.process.stdin.drain()
        try:
            return await self.process.stdout.readline()
        except ValueError:
            raise _NoAnswerError(f"the answer is over {ANSWER_BYTES // 1024**2} MiB") from None

    async def end(self, seconds: float) -> str:
        """Closes standard input, ends the process if that does not within `seconds`, and gives its last words."""
        assert self.process.stdin  # noqa: S101 - a pipe
        self.process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.gather(self.process.wait(), self._listening)
        finally:
            if self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self._listening.cancel()
        await self.process.wait()
        lines = self._said.decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f" (exit code {self.process.returncode}: {last[-_SHOWN:] or 'nothing on standard error'})"

    async def _listen(self) -> None:
        assert self.process.stderr  # noqa: S101 - a pipe
        while chunk := await self.process.stderr.read(4096):
            self._said = (self._said + chunk)[-4096:]
