"""Types the runbook's commands into bash, as a person does who has its variables set; gcloud and kubectl are played."""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from tests import processes
from tests.ops.rehearsal.answer import RefusedError
from tests.ops.rehearsal.gcloud import Gcloud
from tests.ops.rehearsal.kubectl import Kubectl
from tests.sites import serve_site

SHIMS = Path(__file__).parent / "shims"
ROOT = Path(__file__).parents[3]
TIMEOUT = 40.0


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that was run."""

    command: str
    code: int
    printed: str
    """Standard output and standard error, as a person sees them."""


@dataclass(frozen=True, slots=True)
class Shell:
    """A person's shell.

    Args:
        variables: what the runbook's head has set.
        instead: what stands in a document for something of production, and what it is here.
    """

    variables: Mapping[str, str]
    instead: Mapping[str, str]

    def having(self, variables: Mapping[str, str], instead: Mapping[str, str]) -> "Shell":
        """One with more, or other, variables."""
        return replace(
            self,
            variables={**self.variables, **variables},
            instead={**instead, **{k: v for k, v in self.instead.items() if k not in instead}},
        )

    def split_command(self, command: str) -> frozenset[str]:
        """What makes a command the same as another, wherever its file is and whatever stands first."""
        return frozenset(shlex.split(self._replace_names(command), comments=True))

    async def run(self, command: str, typed: str) -> Ran:
        """Runs `typed`, which stands for `command`, in a bash of its own; an unset variable is a runbook's mistake."""
        path = os.pathsep.join([str(SHIMS), str(Path(sys.executable).parent), os.environ["PATH"]])
        process = await asyncio.create_subprocess_exec(
            *("bash", "-uc", self._replace_names(typed)),
            env={"PATH": path, "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8", **self.variables},
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
        except TimeoutError:
            os.killpg(process.pid, 9)
            await processes.kill(process)
            return Ran(command, -1, f"it had not ended after {TIMEOUT:.0f} s")
        return Ran(command, process.returncode or 0, printed.decode(errors="replace"))

    def _replace_names(self, command: str) -> str:
        for production, local in self.instead.items():
            command = command.replace(production, local)
        return command


@asynccontextmanager
async def played(gcloud: Gcloud, kubectl: Kubectl) -> AsyncIterator[str]:
    """Where the two shims hand their arguments to; its URL."""

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        arguments = [str(argument) for argument in form.getall("argument", [])]
        play = gcloud.run if form["command"] == "gcloud" else kubectl.run
        try:
            return web.Response(text=await play(arguments))
        except RefusedError as error:
            return web.Response(text=f"{error}\n", status=400)

    async with serve_site(web.post("/", answer)) as url:
        yield f"{url}/"
