"""The driver `command`: `docker exec -i`, `kubectl exec -i` or `ssh` leads to `keypulse-backend admin`.

One line of JSON to its standard input is one request, and one line of its standard output the answer:

    {"method": "POST", "path": "rotate", "caller": "…", "body": {…}}
    {"status": 200, "body": {…}}

So no value ever stands on a command line, where `ps` would show it and a shell would read it. One process serves one
call after another; during a long one, another process renews the lease. One that does not answer in time is
ended, because its answer would be taken for the next one's.
"""

import asyncio
import json
import os
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError

from services.rotator.drivers import BaseDriverSettings
from services.rotator.drivers.admin_api import (
    NO_ADMIN_API,
    AdminRequest,
    AdminResponse,
    RemoteAdministration,
)
from shared.check import HintedError
from shared.config.settings import Duration
from shared.keyring.administration import (
    MAX_RESPONSE_BYTES,
    Administration,
    RefusedError,
    UnreachableError,
    explain_excess,
)
from shared.kms.settings import ProviderSettings

_EXIT_TIMEOUT: Final = 5.0
"""How long the process may take to end once its standard input is closed."""
_MAX_STDERR_LENGTH: Final = 300
"""Characters of standard error that a sentence repeats."""


class CommandDriverSettings(BaseDriverSettings):
    """A command, which no shell reads."""

    kind: Literal["command"]
    argv: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Such as `[kubectl, exec, -i, deploy/backend, --, keypulse-backend, admin, --config, /etc/keypulse.yml]`."""
    timeout: Duration = 300.0
    """Of one call."""

    @property
    def location(self) -> str:
        return " ".join(shlex.join(self.argv).split())[:80]

    @asynccontextmanager
    async def open(
        self, kms: ProviderSettings, previous_kms: Sequence[ProviderSettings], caller: str
    ) -> AsyncIterator[Administration]:
        del kms, previous_kms
        command = _CommandTransport(self, caller)
        try:
            yield RemoteAdministration(command.name, command.send)
        finally:
            await command.close()


class _NoResponseError(HintedError):
    pass


class _ResponseLine(BaseModel):
    status: int
    body: JsonValue = None


class _CommandTransport:
    def __init__(self, settings: CommandDriverSettings, caller: str) -> None:
        self._settings = settings
        self._caller = caller
        self._idle: list[_CommandProcess] = []
        self.name = settings.location

    async def send(self, request: AdminRequest) -> AdminResponse:
        line = json.dumps({**request._asdict(), "caller": self._caller}).encode() + b"\n"
        running = self._idle.pop() if self._idle else await self._start_process()
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer = _parse_response(await running.send_line(line))
        except TimeoutError:
            cause, hint = f"no answer within {self._settings.timeout:g} s", "it may have been done: check with `status`"
        except _NoResponseError as error:
            cause, hint = error.error, error.hint
        except asyncio.CancelledError:
            await running.stop(0.0)
            raise
        else:
            self._idle.append(running)
            return answer
        error_output = await running.stop(_EXIT_TIMEOUT)
        raise UnreachableError(f"{self.name}: {cause}{error_output}", hint)

    async def close(self) -> None:
        """Ends the processes once no call is running."""
        await asyncio.gather(*(running.stop(_EXIT_TIMEOUT) for running in self._idle))

    async def _start_process(self) -> "_CommandProcess":
        try:
            # A session of its own: neither does Ctrl-C end it before the lease is given up, nor can ssh ask for a
            # password on the terminal, and wait.
            process = await asyncio.create_subprocess_exec(
                *self._settings.argv,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                limit=MAX_RESPONSE_BYTES,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "an argument holds a NUL character"
            raise RefusedError(f"{self.name}: cannot be started: {cause}", "correct driver.argv") from None
        return _CommandProcess(process)


def _parse_response(line: bytes) -> AdminResponse:
    if not line.endswith(b"\n"):
        raise _NoResponseError("it ended before it answered", "run the command yourself")
    if excess := explain_excess(line):
        raise _NoResponseError(f"the answer {excess}", NO_ADMIN_API)
    try:
        response = _ResponseLine.model_validate_json(line)
    except ValidationError:
        raise _NoResponseError(
            f"expected one line of JSON for an answer, got {line[:80].decode(errors='replace')!r}",
            "the command has to lead to `keypulse-backend admin --config …`, and nothing else may write to its "
            "standard output",
        ) from None
    return AdminResponse(response.status, json.dumps(response.body).encode())


class _CommandProcess:
    """A process; its standard error is read, so that a full pipe never blocks it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._stderr = b""
        self._stderr_task = asyncio.create_task(self._read_stderr())

    async def send_line(self, line: bytes) -> bytes:
        """The line that answers `line`, or what there was of it at the end of standard output."""
        assert self.process.stdin  # noqa: S101 - a pipe
        assert self.process.stdout  # noqa: S101 - a pipe
        with suppress(ConnectionError):  # it has ended: standard output says so
            self.process.stdin.write(line)
            await self.process.stdin.drain()
        try:
            return await self.process.stdout.readline()
        except ValueError:
            raise _NoResponseError(f"the answer is over {MAX_RESPONSE_BYTES // 1024**2} MiB") from None

    async def stop(self, seconds: float) -> str:
        """Closes standard input, kills the process after `seconds`, and returns the end of its standard error."""
        assert self.process.stdin  # noqa: S101 - a pipe
        self.process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.gather(self.process.wait(), self._stderr_task)
        finally:
            if self.process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self._stderr_task.cancel()
            self._close_pipes()
        await self.process.wait()
        lines = self._stderr.decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f" (exit code {self.process.returncode}: {last[-_MAX_STDERR_LENGTH:] or 'nothing on standard error'})"

    def _close_pipes(self) -> None:
        """`wait` waits for their end, which never comes while they are full, or another session's process has them."""
        transport: asyncio.SubprocessTransport = self.process._transport  # type: ignore[attr-defined]  # noqa: SLF001
        for number in (1, 2):
            if pipe := transport.get_pipe_transport(number):
                pipe.close()

    async def _read_stderr(self) -> None:
        assert self.process.stderr  # noqa: S101 - a pipe
        while chunk := await self.process.stderr.read(4096):
            self._stderr = (self._stderr + chunk)[-4096:]
