"""Plays the commands of a Markdown page, and writes down what they print."""

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests import processes

_BLOCK: Final = re.compile(r"(?<=```console\n)(.*?)(?=```)", re.DOTALL)
_SECONDS: Final = 60.0
"""For one command."""


class Player:
    """Runs the commands of a page in one folder, with other addresses than those that the page shows.

    Args:
        folder: where the commands run.
        addresses: the real address of each that the page shows.
        environment: further variables.
        commands: the folder of our commands.
    """

    def __init__(
        self, folder: Path, addresses: Mapping[str, str], environment: Mapping[str, str], commands: Path
    ) -> None:
        self._folder = folder
        self._addresses = addresses
        path = os.pathsep.join((str(commands), os.environ["PATH"]))
        self._environment = {**os.environ, "PATH": path, "HOME": str(folder), "COLUMNS": "120", **environment}
        self._background: list[asyncio.subprocess.Process] = []

    async def play(self, page: str) -> str:
        """The page with the output of each command as it is now."""
        played = page
        for block in _BLOCK.findall(page):
            commands = [line for line in block.splitlines() if line.startswith("$ ")]
            lines = [f"{command}\n{await self._run(command.removeprefix('$ '))}" for command in commands]
            played = played.replace(block, "".join(lines), 1)
        return played

    async def close(self) -> None:
        """Stops what runs in the background."""
        for process in self._background:
            await processes.stop(process)

    def translate(self, text: str) -> str:
        """A text of the page, with the real addresses."""
        return self._replace(text, self._addresses)

    async def _run(self, command: str) -> str:
        real = self.translate(command)
        in_background = real.endswith(" &")
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"exec {real.removesuffix(' &')}" if in_background else real),
            cwd=self._folder,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        if in_background:
            self._background.append(process)
            return ""
        output, _ = await processes.finish(process, _SECONDS)
        return self._normalise(output.decode())

    def _normalise(self, output: str) -> str:
        """The output with the page's addresses, and without what differs from run to run."""
        output = self._replace(output, {real: documented for documented, real in self._addresses.items()})
        output = output.replace(f"{self._folder}/", "")
        output = re.sub(r" \(\d+\.\d\d s\)", "", output)
        output = re.sub(r"\b\d+ ms\b", "1 ms", output)
        output = re.sub(r"\b[0-9a-f]{32}\b", "0191…", output)
        output = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*", "2026-01-01T00:00:00+00:00", output)
        output = re.sub(r", on \d{4}-\d\d-\d\d\b", ", on 2026-01-02", output)
        return "".join(f"{line.rstrip()}\n" for line in output.splitlines())

    @staticmethod
    def _replace(text: str, replacements: Mapping[str, str]) -> str:
        for old, new in sorted(replacements.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(old, new)
        return text
