"""The container engine of this machine, docker or podman, as the tests ask it."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1", "DISABLE_HC_SYSTEMD": "true"}
SYSTEMD = Path("/run/systemd/system").exists()


@dataclass(frozen=True, slots=True)
class Engine:
    """`docker` or `podman`."""

    name: str

    @classmethod
    def found(cls) -> "Engine":
        """The one that ops/docker/build takes."""
        return cls(subprocess.check_output([ROOT / "ops/docker/engine"], text=True).strip())

    @property
    def compose(self) -> list[str]:
        """The command that reads compose.yaml."""
        return ["docker", "compose"] if self.name == "docker" else ["podman-compose"]

    def run(
        self, *arguments: object, command: list[str] | None = None, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, whatever that is."""
        given = [*(command or [self.name]), *map(str, arguments)]
        environment = {**(os.environ if SYSTEMD else _ENVIRONMENT), **environment}
        return subprocess.run(
            given, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def out(self, *arguments: object) -> str:
        """What it prints; it has to go well."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inspected(self, container: str) -> dict[str, Any]:
        """What it knows of a container."""
        found: list[dict[str, Any]] = json.loads(self.out("inspect", container))
        return found[0]

    def has(self, image: str) -> bool:
        """Whether an image is here, or can be had."""
        if self.run("image", "inspect", image).returncode == 0:
            return True
        return self.run("pull", "--quiet", image).returncode == 0

    @contextmanager
    def run_health_checks(self, label: str) -> Iterator[None]:
        """Runs the health checks of the containers with this label, where podman has no systemd whose timers do it."""
        if self.name == "docker" or SYSTEMD:
            yield
            return
        stopping = threading.Event()

        def watch() -> None:
            while not stopping.wait(0.5):
                for container in self.run("ps", "--quiet", "--filter", f"label={label}").stdout.split():
                    self.run("healthcheck", "run", container)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def privileges(pid: int) -> dict[str, str]:
    """`CapEff`, `NoNewPrivs` and their like of a process, as the kernel has them."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
