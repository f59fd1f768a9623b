"""kubectl, as far as the runbook needs it: its deployments are the processes of the rehearsal."""

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.demo.processes import STOP_TIMEOUT, Processes
from tests import processes
from tests.ops.rehearsal.answer import Flags, RefusedError, parsed, table

NODE = "node-7"
_TIMEOUT = 20.0
_DURATION = re.compile(r"\d+[smh]")


@dataclass
class Kubectl:
    """A person's kubectl.

    Args:
        children: what runs.
        folder: where their logs are.
        commands: how each is started, by its name.
        deployments: which process a deployment of a namespace is.
        answers: tells whether a process answers.
    """

    children: Processes
    folder: Path
    commands: Mapping[str, Sequence[str | Path]]
    deployments: Mapping[tuple[str, str], str]
    answers: Callable[[str], Awaitable[bool]]
    cordoned: asyncio.Event = field(default_factory=asyncio.Event)
    """The one node that makes trouble gets no more work."""
    _restarts: dict[str, int] = field(default_factory=dict)

    async def run(self, arguments: list[str]) -> str:
        """What kubectl prints. Raises RefusedError where it would complain."""
        if arguments[:1] == ["cordon"]:
            (node,), _ = parsed(arguments[1:], 1, Flags(frozenset()))
            if node != NODE:
                raise RefusedError(f'Error from server (NotFound): nodes "{node}" not found')
            self.cordoned.set()
            return f"node/{node} cordoned\n"
        if len(arguments) < 3 or arguments[0] != "-n":
            raise RefusedError("error: a namespace is expected first, -n NAME")
        namespace, *args = arguments[1:]
        commands: dict[tuple[str, ...], Callable[[str, list[str]], Awaitable[str]]] = {
            ("rollout", "restart"): self._restart,
            ("rollout", "undo"): self._restart,
            ("rollout", "status"): self._status,
            ("rollout", "history"): self._history,
            ("logs",): self._logs,
            ("get", "pods", "-o", "wide"): self._pods_and_nodes,
            ("get", "pods"): self._pods,
            ("describe", "pods"): self._describe,
            ("top", "pods"): self._top,
        }
        for start, command in commands.items():
            if tuple(args[: len(start)]) == start:
                return await command(namespace, args[len(start) :])
        raise RefusedError(f'error: unknown command "{" ".join(args[:2])}" for "kubectl"')

    async def start(self, name: str) -> None:
        """Starts a process that has ended; its last log is kept as the previous one's."""
        shutil.copyfile(self._log(name), self.folder / f"{name}.previous.log")
        await self.children.start(name, self.commands[name])

    async def stop(self, name: str) -> None:
        """Ends a process, and waits for its end."""
        await processes.stop(self.children._running[name], seconds=STOP_TIMEOUT)

    async def _restart(self, namespace: str, args: list[str]) -> str:
        (deployment,), _ = parsed(args, 1, Flags(frozenset()))
        name = self._process(namespace, deployment)
        await self.stop(name)
        await self.start(name)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        return f"deployment.apps/{deployment.partition('/')[2]} restarted\n"

    async def _status(self, namespace: str, args: list[str]) -> str:
        (deployment,), flags = parsed(args, 1, Flags(frozenset({"timeout"})))
        if not _DURATION.fullmatch(flags["timeout"]):
            raise RefusedError(f'error: invalid argument "{flags["timeout"]}" for "--timeout" flag')
        name = self._process(namespace, deployment)
        try:
            async with asyncio.timeout(_TIMEOUT):
                while not await self.answers(name):  # noqa: ASYNC110 - another program's state
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise RefusedError("error: timed out waiting for the condition") from None
        return f'deployment "{deployment.partition("/")[2]}" successfully rolled out\n'

    async def _history(self, namespace: str, args: list[str]) -> str:
        (deployment,), _ = parsed(args, 1, Flags(frozenset()))
        self._process(namespace, deployment)
        return f"deployment.apps/{deployment.partition('/')[2]}\nREVISION  CHANGE-CAUSE\n1         <none>\n"

    async def _logs(self, namespace: str, args: list[str]) -> str:
        previous = "--previous" in args
        args = [arg for arg in args if arg != "--previous"]
        (deployment,), flags = parsed(args, 1, Flags(frozenset(), frozenset({"since", "tail"})))
        if "since" in flags and not _DURATION.fullmatch(flags["since"]):
            raise RefusedError(f'error: invalid argument "{flags["since"]}" for "--since" flag')
        name = self._process(namespace, deployment)
        log = self.folder / f"{name}.previous.log" if previous else self._log(name)
        if not log.exists():  # in Kubernetes the container that has ended is the previous one, whoever restarts it
            log = self._log(name)
        lines = (await asyncio.to_thread(log.read_text, encoding="utf-8")).splitlines(keepends=True)
        return "".join(lines[-int(flags.get("tail", 100_000)) :])

    async def _pods(self, namespace: str, args: list[str]) -> str:
        parsed(args, 0, Flags(frozenset()))
        return table([row[:5] for row in self._rows(namespace)])

    async def _pods_and_nodes(self, namespace: str, args: list[str]) -> str:
        parsed(args, 0, Flags(frozenset()))
        return table(self._rows(namespace))

    async def _describe(self, namespace: str, args: list[str]) -> str:
        parsed(args, 0, Flags(frozenset()))
        return "".join(
            f"Name:  {row[0]}\n    Last State:  Terminated\n      Reason:  Error\n      Exit Code:  1\n"
            for row in self._rows(namespace)[1:]
        )

    async def _top(self, namespace: str, args: list[str]) -> str:
        parsed(args, 0, Flags(frozenset()))
        rows = [(row[0], "12m", "96Mi") for row in self._rows(namespace)[1:]]
        return table([("NAME", "CPU(cores)", "MEMORY(bytes)"), *rows])

    def _rows(self, namespace: str) -> list[tuple[str, ...]]:
        rows = [("NAME", "READY", "STATUS", "RESTARTS", "AGE", "NODE")]
        for (space, deployment), name in self.deployments.items():
            if space == namespace:
                ended = self.children._running[name].returncode is not None
                state = ("0/1", "CrashLoopBackOff") if ended else ("1/1", "Running")
                rows.append((f"{deployment}-0", *state, str(self._restarts.get(name, 0)), "1m", NODE))
        return list(rows)

    def _process(self, namespace: str, deployment: str) -> str:
        kind, _, name = deployment.partition("/")
        if kind != "deployment" or (namespace, name) not in self.deployments:
            raise RefusedError(f'Error from server (NotFound): deployments.apps "{name}" not found')
        return self.deployments[namespace, name]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
